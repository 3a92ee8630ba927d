"""A model larger than its memory: generation of the maps, and decoding from them.

    python benchmarks/streaming.py --config bloom_7B1 --work_dir /var/tmp/bloom --memory_gb 6
    python benchmarks/streaming.py --config bloom_560M --work_dir /var/tmp/bloom --only_maps 5 \
        --tensor_parallel_1 4 --tensor_parallel_2 4 --precision bfloat16

Makes a random checkpoint of the preset's shape, then memory maps of it for the settings given (peak
memory, and the time against copying the checkpoint and flushing the copy), then decodes in a
control group whose memory limit counts mapped pages, and once more without a limit: seconds a token
against the disk's rate, which is measured between the tokens by a reader that has several large
reads under way past the cache, bytes that were really read, and logits to the bit. Needs root for
the control group, and disk for the weights three times.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from control_group import control_group  # noqa: E402 - found just above
from random_checkpoint import make_checkpoint  # noqa: E402
from streamed_decoding import BLOCK, READS, memory_status  # noqa: E402

from config import parse_arguments  # noqa: E402


def main() -> None:
    arguments = parse()
    work = Path(arguments.work_dir).expanduser()
    checkpoint, maps = work / "checkpoint", work / "maps"
    make_checkpoint(parse_arguments(shape_of(arguments))[0].model, checkpoint)
    report_generation(arguments, checkpoint, maps)
    if not arguments.only_maps:
        report_runs(arguments, maps)
    if not arguments.keep:
        shutil.rmtree(checkpoint)
        shutil.rmtree(maps)


def report_runs(arguments: argparse.Namespace, maps: Path) -> None:
    """Decode with the limit and without."""
    limited = run_child(arguments, maps, int(arguments.memory_gb * 1e9))
    report_decoding(f"limited to {arguments.memory_gb:g} GB", limited)
    if arguments.unlimited:
        free = run_child(arguments, maps, None)
        report_decoding("without a limit", free)
        same = limited["logits"] == free["logits"]
        print(f"logits of {len(free['logits'])} passes are {'' if same else 'NOT '}the same bits")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", default="bloom_7B1", help="preset whose shape is used")
    parser.add_argument("--work_dir", required=True, help="folder on the disk to be measured")
    parser.add_argument("--memory_gb", type=float, default=6, help="limit of the control group")
    parser.add_argument("--rounds", type=int, default=5, help="of two tokens, of which one counts")
    parser.add_argument("--layers", type=int, help="fewer layers than the preset's")
    parser.add_argument("--sequence_length", type=int, default=256, help="context, for the cache")
    parser.add_argument("--unlimited", action="store_true", help="decode without a limit too")
    parser.add_argument("--only_maps", type=int, help="make the maps so often, and do not decode")
    parser.add_argument("--keep", action="store_true", help="keep checkpoint and maps")
    arguments, arguments.settings = parser.parse_known_args()
    return arguments


def shape_of(arguments: argparse.Namespace) -> list[str]:
    """The checkpoint's settings as arguments of the project's scripts."""
    settings = ["--config", arguments.config, "--sequence_length", str(arguments.sequence_length)]
    return settings + (["--layers", str(arguments.layers)] if arguments.layers else [])


def settings_of(arguments: argparse.Namespace) -> list[str]:
    """Those of the maps, with what the command line adds."""
    return shape_of(arguments) + arguments.settings


# --- the maps ---


def report_generation(arguments: argparse.Namespace, checkpoint: Path, maps: Path) -> None:
    """Generate the maps and copy the checkpoint, in turns, both from and to the same disk."""
    if (maps / "manifest.json").exists():
        return
    ratios = []
    for _ in range(arguments.only_maps or 1):
        shutil.rmtree(maps, ignore_errors=True)
        copying = copying_seconds(checkpoint, maps.with_name("copy"))
        seconds = generation_seconds(arguments, checkpoint, maps)
        ratios.append(seconds / copying)
        print(f"  copying the checkpoint: {copying:.1f} s; ratio {ratios[-1]:.2f}")
    print(f"median ratio {statistics.median(ratios):.2f}")


def generation_seconds(arguments: argparse.Namespace, checkpoint: Path, maps: Path) -> float:
    """Generate the maps of a checkpoint that is not in memory."""
    command = [sys.executable, str(ROOT / "generate_memmap.py"), *settings_of(arguments)]
    command += ["--memmap-dir", str(maps), "--shard-root", str(checkpoint)]
    forget(checkpoint)
    seconds, peak, peak_anonymous = timed(command)
    size = sum(f.stat().st_size for f in maps.glob("*.safetensors"))
    largest = max(f.stat().st_size for f in maps.glob("*.safetensors"))
    print(f"generation: {size / 1e9:.2f} GB in {seconds:.1f} s")
    print(f"  peak memory {peak / 1e9:.2f} GB, of it not file pages {peak_anonymous / 1e9:.2f} GB")
    print(f"  largest part {largest / 1e9:.2f} GB")
    return seconds


def copying_seconds(checkpoint: Path, copy: Path) -> float:
    """Copy a checkpoint that is not in memory, and have the copy on the disk, as the maps are."""
    forget(checkpoint)
    script = 'cp -r -- "$1" "$2" && sync "$2"/* "$2"'
    seconds, _, _ = timed(["sh", "-c", script, "sh", str(checkpoint), str(copy)])
    shutil.rmtree(copy)
    return seconds


def timed(command: list[str]) -> tuple[float, int, int]:
    """Seconds, and the peaks of all and of anonymous memory, of a command."""
    begin = time.perf_counter()
    process = subprocess.Popen(command)
    peak = anonymous = 0
    while process.poll() is None:
        status = memory_status(process.pid)
        peak = max(peak, status.get("VmHWM", 0))
        anonymous = max(anonymous, status.get("RssAnon", 0))
        time.sleep(0.02)
    if process.returncode:
        sys.exit(f"error: {command[:3]} ended with status {process.returncode}")
    return time.perf_counter() - begin, peak, anonymous


def forget(folder: Path) -> None:
    """Drop a folder's files from the page cache."""
    os.sync()
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


# --- decoding ---


def run_child(arguments: argparse.Namespace, maps: Path, limit: int | None) -> dict:
    """Decode in a process of its own, from files that are not in memory."""
    forget(maps)
    script, settings = str(Path(__file__).with_name("streamed_decoding.py")), settings_of(arguments)
    rounds = ["--rounds", str(arguments.rounds)]
    command = [sys.executable, script, *rounds, *settings, "--memmap_dir", str(maps)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "runtime")}
    with control_group(limit) if limit else contextlib.nullcontext() as group:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            preexec_fn=group.enter if group else None,
            env=environment,
            check=False,
        )
        peak = group.peak() if group else None
    if done.returncode:
        sys.exit(f"error: decoding ended with status {done.returncode}")
    return json.loads(done.stdout) | {"group_peak": peak}


def report_decoding(how: str, result: dict) -> None:
    """Medians of the rounds; shares are of the rate that was measured round each."""
    seconds, read, rates = (result[n] for n in ("token_seconds", "bytes_read", "disk_rates"))
    print(
        f"decoding {how}: {statistics.median(seconds):.2f} s a token; "
        f"{'streams' if result['streams'] else 'all fits in memory'}"
    )
    print(
        f"  session after {result['start_seconds']:.1f} s, first token after "
        f"{result['first_token_seconds']:.1f} s"
    )
    rate = statistics.median(rates)
    print(f"  disk {rate / 1e9:.2f} GB/s, with {READS} reads of {BLOCK >> 20} MB under way")
    weights = [result["weight_bytes"]] * len(seconds)
    for what, sizes in (("weights of a token", weights), ("really read for a token", read)):
        shares = [s / r / t for s, r, t in zip(sizes, rates, seconds, strict=True)]
        print(
            f"  {what}: {statistics.median(sizes) / 1e9:.2f} GB, at "
            f"{100 * statistics.median(shares):.0f} % of the disk's rate "
            f"({100 * min(shares):.0f} to {100 * max(shares):.0f})"
        )
    peak = result["group_peak"]
    print(
        f"  anonymous memory {result['peak_anonymous'] / 1e9:.2f} GB"
        + (f", peak of the control group {peak / 1e9:.2f} GB" if peak else "")
    )


if __name__ == "__main__":
    main()
