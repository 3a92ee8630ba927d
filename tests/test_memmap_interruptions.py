"""Making memory maps: interrupted at any moment, and on a disk that is full."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import environment, run_python
from memmap_checkpoints import Small, contents, identities, refusal
from memmap_processes import generate_in_small_steps

import generate_memmap
from utils.checkpoints.memmap.generator import Generator, Share
from utils.setup import UserError


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[[list[str]], multiprocessing.process.BaseProcess]]:
    """Starts generations as processes of their own, which need not import anything first."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["memmap_processes"])

    def run(words: list[str]) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=generate_in_small_steps, args=(words,))
        process.start()
        return process

    with pytest.MonkeyPatch.context() as patch:
        for name in ("PYTHONPATH", "OMP_NUM_THREADS"):
            patch.setenv(name, environment()[name])
        yield run


def interrupted(start, words: list[str], number: int, seconds: float) -> int:
    """Send a signal to a generation after some time; its exit status, 0 if it was faster."""
    process = start(words)
    process.join(seconds)
    if process.is_alive():
        os.kill(process.pid, number)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def duration(start, words: list[str]) -> float:
    """Seconds that an undisturbed generation takes."""
    started = time.perf_counter()
    process = start(words)
    process.join()
    assert process.exitcode == 0
    return time.perf_counter() - started


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_generation_is_finished_by_the_same_command(
    number, small, undisturbed, start, tmp_path
):
    expected = contents(undisturbed)
    duration(start, small.words(tmp_path / "first", 2, 2))  # starts the server of processes too
    whole = duration(start, small.words(tmp_path / "second", 2, 2))
    assert contents(tmp_path / "second") == expected
    moments = random.Random(int(number))
    interruptions = 0
    while interruptions < (20 if number == signal.SIGKILL else 5):
        maps = tmp_path / "maps"
        words = small.words(maps, 2, 2)
        status = interrupted(start, words, number, moments.uniform(0, whole))
        interruptions += status != 0
        left = contents(maps) if maps.exists() else {}
        for name in left.keys() & expected.keys():
            assert left[name] == expected[name], f"{name} has its name and is not whole"
        if number == signal.SIGINT:
            # The third before Python handles it; 1 from multiprocessing, which runs the script.
            outside = not maps.exists() or left == expected
            assert status in (0, 130, -signal.SIGINT) or (status == 1 and outside)
            assert not [name for name in left if "partial" in name]
        before = identities(maps) if maps.exists() else {}
        assert duration(start, words) > 0
        assert contents(maps) == expected
        after = identities(maps)
        assert before.items() <= after.items(), "a whole file was written again"
        shutil.rmtree(maps)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_killed_generation_of_quantised_maps_is_finished_and_can_be_verified(
    precision, small, start, tmp_path
):
    more = ["--weight_precision", precision, "--group_size", "16"]
    expected = contents(small.generate(tmp_path / "undisturbed", *more, tp1=2, tp2=2))
    maps = tmp_path / "maps"
    words = [*small.words(maps, 2, 2), *more]
    whole = duration(start, words)
    moments = random.Random(0)
    for _ in range(3):
        shutil.rmtree(maps)
        interrupted(start, words, signal.SIGKILL, moments.uniform(0, whole))
        duration(start, words)
        assert contents(maps) == expected
    generate_memmap.main(["--verify", str(maps)])
    assert "weight_precision is" in refusal(lambda: small.generate(maps, tp1=2, tp2=2))
    layer = maps / "layer_0001.safetensors"
    layer.write_bytes(layer.read_bytes()[:-1] + b"\xaa")
    message = refusal(lambda: generate_memmap.main(["--verify", str(maps)]))
    assert "layer_0001.safetensors (altered" in message and "layer_0002" not in message


def test_ranks_go_on_where_other_ranks_died(small, undisturbed, start, tmp_path):
    words = small.words(tmp_path / "maps", 2, 2)
    moments = random.Random(0)
    whole = duration(start, small.words(tmp_path / "first", 2, 2))
    processes = [start([*words, "--world-size", "3", "--rank", str(rank)]) for rank in range(3)]
    for process in processes:
        process.join(moments.uniform(0, whole))
        process.kill()
    for process in processes:
        process.join()
    processes = [start([*words, "--world-size", "2", "--rank", str(rank)]) for rank in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert contents(tmp_path / "maps") == contents(undisturbed)


def test_a_finished_generation_is_left_as_it_is(small, tmp_path):
    maps = small.generate(tmp_path / "maps")
    before = identities(maps)
    small.generate(maps)
    small.generate(maps, "--overwrite")
    assert identities(maps) == before


def test_only_a_missing_file_is_made_again(small, tmp_path):
    maps = small.generate(tmp_path / "maps")
    before, whole = identities(maps), contents(maps)
    (maps / "layer_0001.safetensors").unlink()
    small.generate(maps)
    assert contents(maps) == whole
    changed = {name for name, identity in identities(maps).items() if identity != before[name]}
    assert changed == {"layer_0001.safetensors"}


def test_a_worker_that_is_killed_is_told_in_one_line(small, undisturbed, tmp_path):
    words = small.words(tmp_path / "maps", 2, 2)
    code = (
        "import os, signal, sys, generate_memmap\n"
        "from utils.checkpoints.memmap import workers\n"
        "from utils.setup import run_script\n"
        "import memmap_processes\n"
        "workers._work = memmap_processes.killed\n"
        "if __name__ == '__main__': run_script(lambda: generate_memmap.main(sys.argv[1:]))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    done = run_python(script, *words, "--workers", "2")
    assert done.returncode == 2
    assert done.stderr.startswith("error: process ")
    assert "was ended by SIGKILL" in done.stderr
    assert done.stderr.count("\n") == 1
    small.generate(tmp_path / "maps", tp1=2, tp2=2)
    assert contents(tmp_path / "maps") == contents(undisturbed)


# --- the disk ---


@pytest.fixture
def disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """Gives a disk of a size, or makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = []

    def of_size(size: str) -> Path:
        options = f"size={size}" + (",remount" if mounted else "")
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
        mounted.append(size)
        return folder

    yield of_size
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(small, disk):
    maps = disk("100k") / "maps"
    with pytest.raises(UserError) as error:
        small.generate(maps)
    sizes = sum(p.numel() * 4 for p in small.model.parameters())
    needed = int(str(error.value).partition("disk for ")[2].split()[1].replace(",", ""))
    assert sizes < needed < 3 * sizes
    assert "are needed" in str(error.value)
    assert not identities(maps)
    disk("8m")
    small.generate(maps)
    assert generate_memmap.main(["--verify", str(maps)]) is None


def test_a_disk_that_is_full_on_the_way_leaves_whole_files_and_no_other(small, disk, tmp_path):
    expected = contents(small.generate(tmp_path / "expected"))
    maps = disk("2m") / "maps"
    generator = Generator(small.config(maps))
    generator.begin()
    free = shutil.disk_usage(maps).free
    (maps.parent / "others").write_bytes(b"x" * (free - 250_000))
    with pytest.raises(UserError) as error:
        generator.run(Share(), lambda _: None, lambda _: None)
    assert "No space left on device" in str(error.value)
    assert "\n" not in str(error.value)
    left = identities(maps)
    assert "embeddings.safetensors" in left and left.keys() < expected.keys() - {"manifest.json"}
    assert not [path for path in contents(maps) if "partial" in path]
    assert {name: contents(maps)[name] for name in left}.items() <= expected.items()
    disk("8m")
    small.generate(maps)
    assert contents(maps) == expected
    assert left.items() <= identities(maps).items()


def test_a_full_disk_is_one_line_and_status_2(small, disk):
    maps = disk("2m") / "maps"
    (maps.parent / "others").write_bytes(b"x" * 1_950_000)
    done = run_python("generate_memmap.py", *small.words(maps))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: not enough disk for ")
    assert done.stderr.count("\n") == 1


def test_where_the_disk_has_no_room_nothing_is_overwritten(small, tmp_path, disk):
    maps = small.generate(disk("2m") / "maps")
    before = contents(maps)
    larger = Small.save(tmp_path / "larger", layers=40)
    assert "not enough disk" in refusal(lambda: larger.generate(maps, "--overwrite"))
    assert contents(maps) == before
    small.generate(maps, "--overwrite", tp1=2)  # for which there is room once those are gone
    assert contents(maps) == contents(small.generate(tmp_path / "expected", tp1=2))
