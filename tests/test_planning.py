"""Plans: forecasts held against figures worked out by hand, for a toy model and toy machines."""

from __future__ import annotations

import dataclasses
import functools
import json

import pytest
import yaml
from popxl_torch import machine as popxl_machine

from config import BloomConfig, ExecutionConfig, ModelConfig
from utils.benchmark import run_benchmark
from utils.planning import needs
from utils.planning.collectives import Link, all_gather, all_reduce, reduce_scatter
from utils.planning.forecast import forecast, forecasts, shardings
from utils.planning.machines import MACHINES_FILE, Machine, load_machine
from utils.planning.this_machine import thin_config
from utils.setup import UserError

needs_of = functools.cache(needs.needs_of)
SHIPPED = list(yaml.safe_load(MACHINES_FILE.read_text()))

# One layer, hidden size 8, 2 heads, 16 tokens, a context of 4, float32: 12 * 8 * 8 weights and
# 13 * 8 of biases and norms in the layer, 2 slopes, 2 more norms of 2 * 8, 16 * 8 of the embedding.
# A token reads all of them; it multiplies with 12 * 8 * 8 + 16 * 8, and 8 * 4 keys and values.
HELD = READ = 4 * (12 * 64 + 13 * 8 + 2 + 2 * 2 * 8 + 16 * 8)
CACHE = 4 * 2 * 8 * 4
OPERATIONS = 2 * (12 * 64 + 16 * 8 + 2 * 8 * 4)


def toy(tp1: int = 1, tp2: int = 1, **model) -> BloomConfig:
    sizes = {"layers": 1, "hidden_size": 8, "heads": 2, "vocab_size": 16, "sequence_length": 4}
    settings = ModelConfig(hf_model="toy", **(sizes | model))
    sharding = ExecutionConfig(tensor_parallel_1=tp1, tensor_parallel_2=tp2, prompt_chunks=(4,))
    return BloomConfig(settings, sharding).validate()


def toy_machine(**changed) -> Machine:
    plain = Machine("toy", "a toy", 1, 1, 1e6, 1000.0, {"float32": 10.0})
    return dataclasses.replace(plain, **changed)


# --- one device ---


def test_reading_and_arithmetic_are_work_by_rate():
    result = forecast(needs_of(toy()), toy_machine())
    assert result.reading == pytest.approx((READ + CACHE) / 1000)
    assert result.arithmetic == pytest.approx(OPERATIONS / 10)
    assert result.seconds == pytest.approx(OPERATIONS / 10)  # the longer of the two
    assert result.communication == result.streaming == result.calls == 0
    assert result.memory_bytes == HELD + CACHE


def test_a_cache_that_is_filled_in_part_is_read_in_part():
    result = forecast(needs_of(toy()), toy_machine(), context=1)
    assert result.reading == pytest.approx((READ + CACHE / 4) / 1000)
    assert result.arithmetic == pytest.approx((OPERATIONS - 2 * 2 * 8 * 3) / 10)


def test_calls_add_to_the_work():
    program = needs_of(toy())
    result = forecast(program, toy_machine(call=2.0))
    assert result.calls == 2 * program.token.calls
    assert result.seconds == pytest.approx(OPERATIONS / 10 + result.calls)


def test_a_type_without_a_rate_is_refused():
    with pytest.raises(UserError, match="toy has no teraflops for precision float16, only for fl"):
        forecast(needs_of(toy(precision="float16")), toy_machine())


@pytest.mark.parametrize(
    "machine, place, backing, disk",
    [
        ({"memory": HELD + CACHE}, "memory", 0, 0),
        ({"memory": 4000, "backing_memory": 10**4}, "backing memory", READ + CACHE - 4000, 0),
        ({"memory": 4000, "backing_memory": 100}, "disk", 100, READ + CACHE - 4100),
        ({"memory": 3000, "backing_memory": 10**4}, "nowhere", READ + CACHE - 3000, 0),
        ({"memory": 4000, "backing_memory": 100, "disk_rate": 0}, "nowhere", 100, 0),
    ],
)
def test_what_has_no_room_is_streamed_from_the_next_place(machine, place, backing, disk):
    rates = {"backing_memory_rate": 10.0, "disk_rate": 2.0}
    result = forecast(needs_of(toy()), toy_machine(**(rates | machine)))
    assert (result.place, result.backing_bytes) == (place, backing)
    assert result.fits == (place != "nowhere")
    if result.fits:
        assert result.disk_bytes == disk
        assert result.streaming == pytest.approx(backing / 10 + disk / 2)


def test_streaming_runs_under_the_work():
    slow = toy_machine(memory=4000, backing_memory=10**4, backing_memory_rate=0.5)
    result = forecast(needs_of(toy()), slow)
    assert result.seconds == result.streaming == pytest.approx((READ + CACHE - 4000) / 0.5)


def test_a_cache_that_has_no_room_is_copied_in_and_back():
    machine = toy_machine(memory=4000, backing_memory=10**5, backing_memory_rate=10.0)
    cache = CACHE * 128 // 4
    result = forecast(needs_of(toy(sequence_length=128)), machine)
    assert (result.place, result.cache_bytes) == ("backing memory", cache - 4000)
    assert result.backing_bytes == READ + cache - 4000 + (cache - 4000)
    assert result.streaming == pytest.approx(result.backing_bytes / 10)


def test_a_plan_tells_of_a_cache_that_is_streamed(capsys):
    words = ["--config", "bloom_560M", "--dry_run", "--machine", "h200_x1", "--batch_size", "8"]
    for memory, told in (("1", True), ("200", False)):
        run_benchmark([*words, "--memory_gb", memory])
        assert ("The cache does not fit: " in capsys.readouterr().out) == told


# --- several devices ---

# Of 2 x 2 shards, over tp1: embedding, dense and narrow, 4 numbers each. Over tp2: two sums for
# each of 4 norms, exchanged at once, and qkv, widen and logits of 12, 16 and 8 numbers.
OVER_TP1, BYTES_OVER_TP1 = 3, 4 * (3 * 4)
OVER_TP2, BYTES_OVER_TP2 = 7, 4 * (8 + 12 + 16 + 8)


def test_two_devices_exchange_each_tensor_once():
    four = toy_machine(devices=4, devices_per_host=4, link_rate=100.0, link_latency=0.5)
    program = needs_of(toy(2, 2))
    assert program.token.collective_calls == OVER_TP1 + OVER_TP2
    assert program.token.collective_bytes == BYTES_OVER_TP1 + BYTES_OVER_TP2
    calls, moved = OVER_TP1 + OVER_TP2, BYTES_OVER_TP1 + BYTES_OVER_TP2
    assert forecast(program, four).communication == pytest.approx(0.5 * calls + moved / 100)


def test_groups_that_lie_across_hosts_wait_for_the_network():
    links = {"link_rate": 100.0, "link_latency": 0.5, "network_rate": 10.0, "network_latency": 3.0}
    machine = toy_machine(devices=4, devices_per_host=2, **links)
    inside = 0.5 * OVER_TP2 + BYTES_OVER_TP2 / 100
    across = 3 * OVER_TP1 + BYTES_OVER_TP1 / 10
    assert forecast(needs_of(toy(2, 2)), machine).communication == pytest.approx(inside + across)


def test_replicas_of_one_device_need_no_link_and_share_its_rates():
    result = forecast(needs_of(toy(2, 2)), toy_machine())
    alone = forecast(needs_of(toy()), toy_machine())
    assert (result.devices, result.communication) == (1, 0)
    assert result.arithmetic >= alone.arithmetic
    assert result.memory_bytes >= alone.memory_bytes


def test_groups_of_one_device_share_its_link():
    two = toy_machine(devices=2, devices_per_host=2, link_rate=100.0)
    result = forecast(needs_of(toy(2, 2)), two)  # groups over tp2 are inside, two over tp1 across
    assert result.communication == pytest.approx(2 * BYTES_OVER_TP1 / 100)


def test_replicas_that_devices_cannot_share_are_refused():
    machine = toy_machine(devices=3, devices_per_host=3, link_rate=1.0)
    with pytest.raises(UserError, match="4 replicas cannot be shared evenly by 3 devices"):
        forecast(needs_of(toy(2, 2)), machine)


def test_large_tensors_are_reduced_in_a_ring_and_small_ones_by_doubling():
    assert all_reduce(4, 400, Link(100, 0)) == pytest.approx(6 * 1)
    assert all_reduce(4, 400, Link(100, 10)) == pytest.approx(2 * (10 + 4))
    assert all_gather(4, 400, Link(100, 10)) == pytest.approx(3 * (10 + 4))
    assert reduce_scatter(4, 400, Link(100, 10)) == pytest.approx(3 * (10 + 1))


# --- the best sharding ---


def test_every_sharding_that_the_model_admits_is_tried():
    def of(config, devices):
        found = [c.execution for c in shardings(config, devices)]
        return [(e.tensor_parallel_1, e.tensor_parallel_2) for e in found]

    assert of(toy(), 1) == [(1, 1)]
    assert of(toy(), 4) == [(1, 4), (2, 2)]  # 2 heads: tp1 is 1 or 2
    assert of(toy(), 16) == []


def test_the_fastest_comes_first():
    # tp1 shards cache and heads, tp2 repeats them; over tp2 there is more to exchange too.
    two = toy_machine(devices=2, devices_per_host=2, link_rate=1e6, link_latency=1.0)
    first, second = forecasts(toy(), two)
    assert (first.tensor_parallel_1, second.tensor_parallel_1) == (2, 1)
    assert first.seconds < second.seconds


def test_a_sharding_that_fits_comes_before_a_faster_one_that_does_not(monkeypatch):
    def slower_where_it_fits(needs, machine, context):
        fits = needs.config.execution.tensor_parallel_1 == 1
        place, seconds = ("disk", 2.0) if fits else ("nowhere", 1.0)
        return dataclasses.replace(forecast(needs, machine), place=place, streaming=seconds)

    monkeypatch.setattr("utils.planning.forecast.forecast", slower_where_it_fits)
    fast = {"memory_rate": 1e9, "arithmetic": {"float32": 1e9}, "link_rate": 1e9}
    found = forecasts(toy(), toy_machine(devices=2, devices_per_host=2, **fast))
    assert [(f.fits, f.seconds) for f in found] == [(True, 2.0), (False, 1.0)]


def test_none_is_the_best_where_none_fits(capsys):
    words = ["--config", "bloom_7B1", "--dry_run", "--machine", "h200_x1", "--memory_gb", "0.5"]
    run_benchmark(words)
    text = capsys.readouterr().out
    assert "does not fit" in text and "best" not in text


# --- machines ---


@pytest.mark.parametrize("name", SHIPPED)
def test_176b_is_planned_on_every_machine_that_is_shipped(name, capsys):
    run_benchmark(["--config", "bloom_176B_pod16", "--dry_run", "--machine", name, "--json"])
    plan = json.loads(capsys.readouterr().out)
    devices = load_machine(name).devices
    for found in plan["shardings"]:
        assert found["tensor_parallel_1"] * found["tensor_parallel_2"] == devices
        assert found["seconds"] >= max(found["reading"], found["streaming"]) > 0
        assert found["memory_bytes"] * devices > plan["weight_bytes_all_replicas"]
    assert plan["best"] == plan["shardings"][0]
    assert plan["best"]["seconds"] == min(f["seconds"] for f in plan["shardings"] if f["fits"])


def test_a_plan_for_a_person_names_the_best_and_the_configured_sharding(capsys):
    run_benchmark(["--config", "bloom_7B1", "--dry_run", "--machine", "a100_80gb_x8"])
    lines = capsys.readouterr().out.splitlines()
    (best,) = [line for line in lines if line.endswith("  best")]
    assert best.split()[:3] == ["8", "x", "1"]
    (configured,) = [line for line in lines if line.endswith("  as configured")]
    assert configured.split()[:4] == ["1", "x", "1", "1"]


GIVEN = {"devices": 2, "memory_gb": 1, "memory_gb_per_s": 2, "teraflops": {"float32": 3}}


def test_a_file_of_ones_own_adds_machines_in_its_units(tmp_path):
    file = tmp_path / "mine.yml"
    file.write_text(yaml.safe_dump({"mine": GIVEN | {"link_gb_per_s": 4, "link_latency_us": 5}}))
    machine = load_machine("mine", file)
    assert (machine.memory, machine.memory_rate, machine.arithmetic) == (
        1e9,
        2e9,
        {"float32": 3e12},
    )
    assert (machine.link_rate, machine.link_latency) == (4e9, pytest.approx(5e-6))
    assert load_machine("h200_x1", file).name == "h200_x1"


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"devices": 0}, "devices must be an integer, 1 or more, not 0"),
        ({"devices_per_host": 1.5}, "devices_per_host must be an integer, 1 or more"),
        ({"memory_gb": 0}, "memory_gb must be a number over 0, not 0"),
        ({"memory_gb": "80 GB"}, "memory_gb must be a number over 0, not '80 GB'"),
        ({"memory_gb_per_s": float("inf")}, "memory_gb_per_s must be a number over 0, not inf"),
        ({"link_gb_per_s": -1}, "link_gb_per_s must be a number 0 or more, not -1"),
        ({"teraflops": {}}, "teraflops must map types to numbers"),
        ({"teraflops": {"float8": 1}}, "teraflops: unknown type 'float8'; known: float32"),
        ({"teraflops": {"float32": 0}}, "teraflops: float32 must be a number over 0, not 0"),
        ({"memory": 1}, "unknown memory; known: "),
        ({"assumed": ["disk_gb_per_s"]}, "assumed must list settings that are given"),
        ({"link_gb_per_s": 0}, "2 devices need link_gb_per_s over 0"),
        ({"devices_per_host": 1}, "2 devices, 1 a host, need network_gb_per_s over 0"),
        ({"backing_memory_gb": 1}, "backing_memory_gb needs backing_memory_gb_per_s over 0"),
    ],
)
def test_settings_that_are_not_possible_are_one_line(changed, message, tmp_path):
    file = tmp_path / "mine.yml"
    file.write_text(yaml.safe_dump({"mine": GIVEN | {"link_gb_per_s": 1} | changed}))
    with pytest.raises(UserError) as caught:
        load_machine("mine", file)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert f"machine mine of {file}" in str(caught.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("mine: [", "is not YAML: "),
        ("- mine", "must map names of machines to their settings"),
        ("mine: 3", "must map settings to values, not be 3"),
        ("mine: {devices: 1}", "lacks memory_gb, memory_gb_per_s, teraflops"),
        ("yours: {}", "unknown machine 'mine'; known: a100_80gb_x8, "),
    ],
)
def test_files_that_are_not_of_machines_are_one_line(text, message, tmp_path):
    file = tmp_path / "mine.yml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_machine("mine", file)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words, message",
    [
        ("--dry_run --devices 4", "--devices is of a machine: name it with --machine"),
        ("--machine h200_x1", "--machine plans, the benchmark does not: add --dry_run"),
        ("--dry_run --machine h200_x1 --devices -1", "devices must be 0 or more, not -1"),
        ("--dry_run --machine h200_x1 --context 600", "context must be at most sequence_length"),
        ("--dry_run --machine pdp11", "unknown machine 'pdp11'; known: a100_80gb_x8, "),
        ("--dry_run --machine cpu_2_cores --machines no.yml", "cannot read no.yml: No such file"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        run_benchmark(words.split())


# --- the machine at hand ---


@pytest.mark.parametrize("sharding", [(1, 1), (2, 2), (1, 4)])
def test_the_thin_program_makes_as_many_calls(sharding):
    config = toy(*sharding, layers=3, hidden_size=64, heads=4, precision="bfloat16")
    whole, thin = needs_of(config).token, needs_of(thin_config(config)).token
    assert thin.calls == whole.calls
    assert thin.collective_calls == whole.collective_calls


def test_the_machine_at_hand_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(popxl_machine, "READ_BYTES", {"cpu": 1 << 20})
    run_benchmark(["--dry_run", "--machine", "this", "--memory_gb", "1", "--json"])
    plan = json.loads(capsys.readouterr().out)
    machine, best = plan["machine"], plan["best"]
    popxl_machine.release()
    assert (machine["devices"], machine["memory"], best["place"]) == (1, 1e9, "memory")
    read = plan["weight_bytes_all_replicas"] + plan["cache_bytes_per_token"]
    assert best["reading"] == pytest.approx(read / machine["memory_rate"])
    assert (
        best["calls"] == pytest.approx(plan["calls_per_token"] * machine["call"]) and best["calls"]
    )
    rate = machine["arithmetic"]["float32"]
    assert best["arithmetic"] == pytest.approx(plan["operations_per_token"] / rate)
