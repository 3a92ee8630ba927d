"""A model larger than its memory: generation of the maps, and decoding from them.

    python benchmarks/streaming.py --config bloom_7B1 --work_dir /var/tmp/bloom --memory_gb 6

Makes a random checkpoint of the preset's shape, then memory maps of it (peak memory, and the time
against copying the same bytes), then decodes in a control group whose memory limit counts mapped
pages, and once more without a limit: tokens a second against the disk's sequential rate, which is
measured between the tokens, and logits to the bit. Needs root for the control group, and disk for
the weights three times.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from random_checkpoint import make_checkpoint  # noqa: E402 - found just above

from config import parse_arguments  # noqa: E402

CGROUP_1, CGROUP_2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
BLOCK = 8 << 20


def main() -> None:
    arguments = parse()
    if arguments.child:
        decode(arguments)
    else:
        measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    """Everything, in order."""
    work = Path(arguments.work_dir).expanduser()
    checkpoint, maps = work / "checkpoint", work / "maps"
    make_checkpoint(parse_arguments(settings_of(arguments))[0].model, checkpoint)
    report_generation(arguments, checkpoint, maps)
    limited = run_child(arguments, maps, int(arguments.memory_gb * 1e9))
    report_decoding(f"limited to {arguments.memory_gb:g} GB", limited)
    if arguments.unlimited:
        free = run_child(arguments, maps, None)
        report_decoding("without a limit", free)
        same = limited["logits"] == free["logits"]
        print(f"logits of {len(free['logits'])} passes are {'' if same else 'NOT '}the same bits")
    if not arguments.keep:
        shutil.rmtree(checkpoint)
        shutil.rmtree(maps)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", default="bloom_7B1", help="preset whose shape is used")
    parser.add_argument("--work_dir", required=True, help="folder on the disk to be measured")
    parser.add_argument("--memory_gb", type=float, default=6, help="limit of the control group")
    parser.add_argument("--tokens", type=int, default=6, help="tokens to decode, 3 or more")
    parser.add_argument("--layers", type=int, help="fewer layers than the preset's")
    parser.add_argument("--sequence_length", type=int, default=256, help="context, for the cache")
    parser.add_argument("--unlimited", action="store_true", help="decode without a limit too")
    parser.add_argument("--keep", action="store_true", help="keep checkpoint and maps")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def settings_of(arguments: argparse.Namespace) -> list[str]:
    """The settings as arguments of the project's scripts."""
    settings = ["--config", arguments.config, "--sequence_length", str(arguments.sequence_length)]
    return settings + (["--layers", str(arguments.layers)] if arguments.layers else [])


# --- the maps ---


def report_generation(arguments: argparse.Namespace, checkpoint: Path, maps: Path) -> None:
    """Generate the maps and copy them, both from and to the same disk."""
    if (maps / "manifest.json").exists():
        return
    command = [sys.executable, str(ROOT / "generate_memmap.py"), *settings_of(arguments)]
    command += ["--memmap-dir", str(maps), "--shard-root", str(checkpoint)]
    forget(checkpoint)
    seconds, peak, peak_anonymous = timed(command)
    size = sum(f.stat().st_size for f in maps.glob("*.safetensors"))
    largest = max(f.stat().st_size for f in maps.glob("*.safetensors"))
    print(f"generation: {size / 1e9:.2f} GB in {seconds:.1f} s")
    print(f"  peak memory {peak / 1e9:.2f} GB, of it not file pages {peak_anonymous / 1e9:.2f} GB")
    print(f"  largest part {largest / 1e9:.2f} GB")
    forget(checkpoint)
    copy = maps.with_name("copy")
    script = 'cp -r -- "$1" "$2" && sync'
    copying, _, _ = timed(["sh", "-c", script, "sh", str(checkpoint), str(copy)])
    shutil.rmtree(copy)
    print(f"  copying the checkpoint: {copying:.1f} s; ratio {seconds / copying:.2f}")


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


def memory_status(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split(":", 1) for line in lines if line.endswith("kB"))
    return {name: int(value.split()[0]) * 1024 for name, value in fields}


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
    group = control_group(limit) if limit else None
    command = [sys.executable, __file__, "--child", *sys.argv[1:]]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "runtime")}

    def enter() -> None:
        if group:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    done = subprocess.run(
        command, stdout=subprocess.PIPE, preexec_fn=enter, env=environment, check=False
    )
    peak = group_peak(group) if group else None
    if group:
        group.rmdir()
    if done.returncode:
        sys.exit(f"error: decoding ended with status {done.returncode}")
    return json.loads(done.stdout) | {"group_peak": peak}


def control_group(limit: int) -> Path:
    """A new control group with a memory limit."""
    root = CGROUP_1 if CGROUP_1.is_dir() else CGROUP_2
    group = root / f"popxl_streaming_{os.getpid()}"
    group.mkdir()
    name = "memory.limit_in_bytes" if root == CGROUP_1 else "memory.max"
    (group / name).write_text(str(limit))
    return group


def group_peak(group: Path) -> int | None:
    for name in ("memory.max_usage_in_bytes", "memory.peak"):
        if (group / name).exists():
            return int((group / name).read_text())
    return None


def decode(arguments: argparse.Namespace) -> None:
    """Decode from the maps and print what was measured as JSON."""
    import numpy as np

    from utils.loading import load

    maps = Path(arguments.work_dir).expanduser() / "maps"
    config = parse_arguments([*settings_of(arguments), "--memmap_dir", str(maps)])[0]
    begin = time.perf_counter()
    loaded = load(config)
    started = time.perf_counter() - begin
    files = sorted(maps.glob("layer_*.safetensors"))
    logits = [loaded.passes.prompt(0, [5, 6, 7, 8])]
    first = time.perf_counter() - begin
    seconds, rates = [], []
    for number in range(arguments.tokens):
        tokens = np.array([int(logits[-1].argmax())], np.int32)
        begin = time.perf_counter()
        logits.append(loaded.passes.token(tokens, np.array([4 + number], np.int32))[0])
        seconds.append(time.perf_counter() - begin)
        rates.append(direct_rate(files[number % len(files)]))
    token_pass = loaded.session.pass_graphs["token"]
    streams = loaded.session._engine.pager.streams
    result = {
        "weight_bytes": config.execution.replicas * token_pass.cost().weight_bytes,
        "start_seconds": started,
        "first_token_seconds": first,
        "token_seconds": seconds,
        "disk_rates": rates,
        "streams": streams,
        "peak_anonymous": memory_status(os.getpid()).get("RssAnon", 0),
        "logits": [hashlib.sha256(x.tobytes()).hexdigest() for x in logits],
    }
    print(json.dumps(result))


def direct_rate(path: Path, limit: int = 64 * BLOCK) -> float:
    """Bytes a second of sequential reads past the page cache."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, BLOCK)
    done, begin = 0, time.perf_counter()
    while done < limit and (got := os.preadv(descriptor, [buffer], done)) > 0:
        done += got
        if got < BLOCK:
            break
    seconds = time.perf_counter() - begin
    os.close(descriptor)
    return done / seconds


def report_decoding(how: str, result: dict) -> None:
    """Medians of the tokens after the first, from which the order of loads is learned."""
    seconds = statistics.median(result["token_seconds"][1:])
    rate = statistics.median(result["disk_rates"][1:])
    limit = rate / result["weight_bytes"]
    print(f"decoding {how}: {result['weight_bytes'] / 1e9:.2f} GB of weights a token")
    print(
        f"  session after {result['start_seconds']:.1f} s, first token after "
        f"{result['first_token_seconds']:.1f} s"
    )
    print(f"  disk {rate / 1e9:.2f} GB/s, so {limit:.4f} tokens/s if all is read for each")
    print(
        f"  measured {1 / seconds:.4f} tokens/s ({seconds:.2f} s a token): "
        f"{100 / seconds / limit:.0f} % of that; "
        f"{'streams' if result['streams'] else 'all fits in memory'}"
    )
    peak = result["group_peak"]
    print(
        f"  anonymous memory {result['peak_anonymous'] / 1e9:.2f} GB"
        + (f", peak of the control group {peak / 1e9:.2f} GB" if peak else "")
    )


if __name__ == "__main__":
    main()
