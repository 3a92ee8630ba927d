"""How many threads compute beside other programs, on a processor whose use is made up."""

import itertools
import logging
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from popxl_torch.backends.cpu import build, crowd
from popxl_torch.backends.cpu.back_end import Cpu
from popxl_torch.backends.cpu.crowd import Crowd, Usage, usage_of_process
from popxl_torch.backends.cpu.instructions import header
from popxl_torch.backends.cpu.library import Library
from popxl_torch.backends.specs import LinearSpec, StoredWeight

STEP = 0.002
"""Seconds between what is computed."""


class Machine:
    """Cores that are shared fairly by the threads that compute and by other processes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cores: int):
        monkeypatch.delenv(crowd.FIXED_THREADS, raising=False)
        monkeypatch.setattr(Crowd, "told", False)
        self.cores, self.busy, self.now, self.looks = cores, 0.0, 0.0, 0
        self.used = Usage(0, 0, 0)
        self.crowd = Crowd(self.usage, lambda: self.now)

    def usage(self) -> Usage:
        self.looks += 1
        return self.used

    def compute(self, seconds: float) -> list[int]:
        """The numbers of threads of what is computed meanwhile."""
        counts = []
        for _ in range(round(seconds / STEP)):
            counts.append(threads := self.crowd.threads(self.cores))
            had = min(threads, self.cores * threads / (threads + self.busy))
            left = self.cores - had - min(self.busy, self.cores - had)
            self.pass_time(STEP, had, threads - had, left)
        return counts

    def pass_time(self, seconds: float, had: float, wanted: float, left: float) -> None:
        self.now += seconds
        rates, before = (had, wanted, left), (self.used.computed, self.used.waited, self.used.idle)
        self.used = Usage(*(b + seconds * r for b, r in zip(before, rates, strict=True)))


@pytest.mark.parametrize("cores", [2, 4, 16])
def test_alone_all_threads_compute(monkeypatch, cores):
    assert set(Machine(monkeypatch, cores).compute(20)) == {cores}


def test_what_seldom_runs_takes_no_thread(monkeypatch):
    machine = Machine(monkeypatch, 2)
    machine.busy = 0.1
    assert set(machine.compute(20)) == {2}


@pytest.mark.parametrize("seconds", [0.1, 0.2])
def test_what_runs_for_a_moment_takes_no_thread(monkeypatch, seconds):
    machine = Machine(monkeypatch, 2)
    for _ in range(20):
        machine.busy = 1
        counts = machine.compute(seconds)
        machine.busy = 0
        assert set(counts + machine.compute(0.5)) == {2}


@pytest.mark.parametrize("cores, busy, left", [(2, 1, 1), (2, 2, 1), (4, 1, 3), (16, 4, 12)])
def test_beside_busy_processes_fewer_compute_within_a_second(monkeypatch, cores, busy, left):
    machine = Machine(monkeypatch, cores)
    machine.busy = busy
    machine.compute(1)
    assert set(machine.compute(20)) == {left}


@pytest.mark.parametrize("busy", [1, 2])
def test_all_compute_again_half_a_second_after_the_others_ended(monkeypatch, busy):
    machine = Machine(monkeypatch, 2)
    machine.busy = busy
    machine.compute(30)
    machine.busy = 0
    machine.compute(0.6)
    assert set(machine.compute(20)) == {2}


def test_all_compute_again_where_nothing_was_computed_meanwhile(monkeypatch):
    machine = Machine(monkeypatch, 2)
    machine.busy = 1
    machine.compute(1)
    machine.busy = 0
    machine.pass_time(60, 0, 0, 2)
    assert set(machine.compute(1)) == {2}


def test_what_others_used_while_this_one_waited_takes_no_thread(monkeypatch):
    machine = Machine(monkeypatch, 2)
    machine.busy = 1
    machine.compute(1)
    machine.busy = 0
    for _ in range(10):
        machine.pass_time(3, 0, 0, 0)
        machine.compute(0.25)
        assert set(machine.compute(1)) == {2}


def test_beside_a_process_that_comes_and_goes_threads_change_seldom(monkeypatch):
    machine, counts = Machine(monkeypatch, 2), []
    for busy in 50 * [1, 0]:
        machine.busy = busy
        counts += machine.compute(0.4)
    changes = sum(a != b for a, b in itertools.pairwise(counts))
    assert changes < 60  # of 100


def test_where_idle_cores_are_not_ours_tries_become_seldom(monkeypatch):
    """In a container that is given less than the machine, what is idle there cannot be had."""
    machine = Machine(monkeypatch, 2)
    machine.busy, counts = 1, []
    for _ in range(100):
        counts += machine.compute(0.5)
        idle = machine.used.idle + 0.5
        machine.used = Usage(machine.used.computed, machine.used.waited, idle)
    assert counts.count(2) < 0.1 * len(counts)


def test_one_line_says_so_after_seconds_of_it(monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    machine = Machine(monkeypatch, 2)
    machine.busy = 1
    machine.compute(4)
    assert not caplog.messages
    for busy in (1, 0, 1):
        machine.busy = busy
        machine.compute(20)
    another = Crowd(machine.usage, lambda: machine.now)  # of another session
    machine.crowd, machine.busy = another, 1
    machine.compute(20)
    assert caplog.messages == ["other programs use the processor: 1 of 2 threads compute (slower)"]


def test_one_thread_is_one_thread(monkeypatch):
    machine = Machine(monkeypatch, 1)
    machine.busy = 3
    assert set(machine.compute(5)) == {1}
    assert not machine.looks


def test_the_use_of_the_processor_is_read_seldom(monkeypatch):
    machine = Machine(monkeypatch, 2)
    machine.compute(10)
    assert machine.looks <= 101


def test_a_person_may_fix_the_number(monkeypatch):
    machine = Machine(monkeypatch, 2)
    monkeypatch.setenv(crowd.FIXED_THREADS, "1")
    machine.crowd = Crowd(machine.usage, lambda: machine.now)
    machine.busy = 2
    assert set(machine.compute(5)) == {2}


def test_a_system_that_does_not_tell_changes_nothing(monkeypatch):
    monkeypatch.delenv(crowd.FIXED_THREADS, raising=False)

    def unknown() -> Usage:
        raise FileNotFoundError("/proc/self/task")

    times = itertools.count(0.0, 1.0)
    follows = Crowd(unknown, lambda: next(times))
    assert {follows.threads(2) for _ in range(100)} == {2}


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="no such counts here")
def test_what_a_process_computed_is_counted():
    before, sums = usage_of_process(), 0
    while usage_of_process().computed < before.computed + 0.05:
        sums += sum(range(1000))
    after = usage_of_process()
    assert after.computed >= before.computed + 0.05
    assert after.waited >= before.waited
    assert after.idle >= before.idle


class Scripted(Crowd):
    """Another number of threads for every instruction."""

    def __init__(self, counts: list[int]):
        super().__init__()
        self.counts = itertools.cycle(counts)

    def threads(self, most: int) -> int:
        return next(self.counts)


@pytest.fixture(scope="module")
def built() -> Path:
    try:
        return build.built_library()
    except build.CannotBuildError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("rows", [1, 8, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_results_do_not_depend_on_how_many_threads_compute(built, dtype, rows):
    generator = np.random.default_rng(0)
    x = torch.from_numpy(generator.standard_normal((rows, 320), np.float32)).to(dtype)
    w = torch.from_numpy(generator.standard_normal((777, 320), np.float32)).to(dtype).T
    spec, found = LinearSpec(0, dtype, activation="gelu"), []
    for counts in ([1], [2], [3], [1, 2, 5]):
        cpu = Cpu(Library(built, Scripted(counts)))
        found += [cpu.linear(spec, x, StoredWeight(w)) for _ in range(3)]
    if found[0] is None:
        pytest.skip("torch multiplies so many rows of this type on this processor")
    assert all(torch.equal(found[0], other) for other in found)


PROGRAM = r"""
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "work.hpp"

using namespace popxl;

// Threads take items; the first one stops in its first item until no other has any left.
int main(int, char** given) {
    int threads = std::atoi(given[1]);
    int64_t rows = std::atoll(given[2]), row = std::atoll(given[3]);
    std::vector<Taken> taken(threads);
    std::vector<std::vector<char>> scratch(threads);
    std::vector<std::atomic<int>> times(rows);
    std::vector<int64_t> done(threads);
    std::atomic<int> ended{0};
    std::vector<std::thread> all;
    for (int thread = 0; thread < threads; thread++)
        all.emplace_back([&, thread] {
            bool stops = thread == 0 && threads > 1;
            Worker worker{taken.data(), thread, threads, &scratch[thread]};
            worker.pieces(rows, row, [&](int64_t i) {
                times[i]++, done[thread]++;
                while (stops && ended < threads - 1) std::this_thread::yield();
            });
            ended++;
        });
    for (auto& thread : all) thread.join();
    int64_t once = 0;
    for (auto& count : times) once += count == 1;
    std::printf("%ld %ld\n", long(once), long(done[0]));
}
"""


@pytest.fixture(scope="module")
def sharing(tmp_path_factory) -> Path:
    try:
        compiler = build.compiler()
    except build.CannotBuildError as error:
        pytest.skip(str(error))
    place = tmp_path_factory.mktemp("sharing")
    (place / "sharing.cpp").write_text(PROGRAM, encoding="utf-8")
    (place / build.HEADER).write_text(header(), encoding="utf-8")
    words = ["-std=c++17", "-O1", "-pthread", f"-I{build.SOURCES}", f"-I{place}"]
    made = [compiler, *words, str(place / "sharing.cpp"), "-o", str(place / "sharing")]
    subprocess.run(made, check=True, timeout=100)
    return place / "sharing"


@pytest.mark.parametrize("rows, row", [(0, 1), (1, 1), (3, 5000), (1000, 1), (1000, 900), (64, 64)])
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_every_row_is_taken_once_though_a_thread_stops(sharing, threads, rows, row):
    words = [str(sharing), str(threads), str(rows), str(row)]
    output = subprocess.run(words, check=True, capture_output=True, timeout=60, text=True).stdout
    once, by_the_one_that_stopped = map(int, output.split())
    assert once == rows
    if threads > 1:  # at most the rows of the item it was in
        assert by_the_one_that_stopped <= max(1, rows // (8 * threads))
