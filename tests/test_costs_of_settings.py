"""Settings that would take minutes or all memory are one line within seconds, nothing is built."""

from __future__ import annotations

import math
import re

import pytest
from commands import run_python

from config import ConfigError, costs, load_config
from config.config import ExecutionConfig, ModelConfig, setting_names
from utils.generation import loading
from utils.planning.needs import needs_of
from utils.setup import UserError

HUGE = 10**9


def numbers() -> list[str]:
    """Every setting that is a whole number."""
    kinds = [(s, name) for s in (ModelConfig, ExecutionConfig) for name in setting_names(s)]
    return [name for section, name in kinds if section.__annotations__[name] == "int"]


@pytest.mark.parametrize("value", [HUGE, 10**40])
@pytest.mark.parametrize("name", numbers())
def test_no_whole_number_is_without_a_bound(name: str, value: int) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config("bloom_tiny", {name: value})
    assert "\n" not in str(raised.value)


TOGETHER = {
    "replicas": {"tensor_parallel_1": 1024, "tensor_parallel_2": 1024, "heads": 1024}
    | {"hidden_size": 2048},
    "weights": {"layers": 1000, "hidden_size": 1 << 17, "heads": 1024},
    "chunks": {"prompt_chunks": list(range(1, 100))},
    "shards": {"tensor_parallel_1": HUGE, "heads": HUGE, "hidden_size": 2 * HUGE},
}


@pytest.mark.parametrize("name", TOGETHER)
def test_settings_that_cost_too_much_together_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="at most"):
        load_config("bloom_tiny", TOGETHER[name])


@pytest.mark.parametrize("settings", [{}, {"tensor_parallel_1": 2, "tensor_parallel_2": 2}])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_what_is_computed_is_what_is_built(settings: dict, precision: str) -> None:
    config = load_config("bloom_tiny", {**settings, "precision": precision, "batch_size": 3})
    needs = needs_of(config)
    assert costs.cache_bytes(config) == config.execution.replicas * needs.cache_bytes
    assert math.isclose(costs.weight_bytes(config), needs.weight_bytes_all_replicas, rel_tol=0.05)


FILLS_MEMORY = [
    {"batch_size": 1 << 14, "sequence_length": 1 << 20},
    {"sequence_length": 1 << 20, "batch_size": 1 << 10},
    {"batch_size": 1 << 14, "vocab_size": 1 << 23},
]


@pytest.mark.parametrize("settings", FILLS_MEMORY)
def test_more_than_memory_is_refused_before_anything_is_built(
    settings: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "available_memory", lambda: 1 << 36)
    config = load_config("bloom_tiny", {**settings, "device": "cpu"})
    with pytest.raises(UserError, match="more memory than the 68.7 GB that are free"):
        loading.check_memory(config, weights=False)


def test_weights_count_where_they_lie_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "available_memory", lambda: 1 << 36)
    config = load_config("bloom_tiny", {"layers": 900, "hidden_size": 1 << 14, "device": "cpu"})
    loading.check_memory(config, weights=False)
    with pytest.raises(UserError, match="the weights 11"):
        loading.check_memory(config, weights=True)


ROOMS = [3_000, 30_000_000, 130_000_000, 2_700_000_000, 2_790_000_000]


@pytest.mark.parametrize("available", ROOMS)
def test_what_would_fit_does_and_a_little_more_would_not(available: int) -> None:
    settings = {"batch_size": 64, "layers": 40}
    said = costs.excess(load_config("bloom_tiny", settings), available, weights=True)
    changes = [c for c in said.partition("what would fit: ")[2].split(", or ") if c]
    assert changes or (available < 10_000 and "choose a smaller model" in said)
    for change in changes:
        words = re.findall(r"--(\w+) (\w+)", change)
        chosen = {name: int(text) if text.isdigit() else text for name, text in words}
        weights = "memory maps" not in change
        assert not costs.excess(load_config("bloom_tiny", settings | chosen), available, weights)
        for name in chosen.keys() & {"batch_size", "sequence_length"}:
            more = load_config("bloom_tiny", settings | chosen | {name: chosen[name] + 1})
            assert costs.excess(more, available, weights)


def test_both_figures_are_told() -> None:
    config = load_config("bloom_176B_pod16")
    said = costs.excess(config, 14 * 10**9, weights=True)
    assert "this needs 369.2 GB, more memory than the 14.0 GB that are free" in said
    assert "memory maps (generate_memmap.py, --memmap_dir) with --sequence_length" in said


def test_a_checkpoint_whose_weights_are_made_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mapped in place they do not count; in another precision they lie in memory."""
    monkeypatch.setattr(loading, "available_memory", lambda: 25_000_000)
    small = {"sequence_length": 64, "prompt_chunks": [16], "device": "cpu", "prefix_cache": 0}
    with pytest.raises(UserError, match=r"the weights 27\.\d MB.*--precision bfloat16"):
        loading.load("bloom_tiny", **small)
    assert loading.load("bloom_tiny", **small, precision="float16")


COMMANDS = [
    ("run_inference.py", "--prompt", "A", "--batch_size", "1000000000"),
    ("run_inference.py", "--prompt", "A", "--batch_size", "16384", "--device", "cpu"),
    ("inference.py", "--batch_size", "1000000000", "--dry_run"),
    ("inference.py", "--layers", "1000", "--hidden_size", "32768", "--device", "cpu"),
    ("generate_memmap.py", "--tensor_parallel_1", "1000000", "--memmap_dir", "none"),
    ("run_inference_gradio.py", "--prompt_chunks", "1000000000", "--sequence_length", "1000000000"),
]


@pytest.mark.parametrize("words", COMMANDS)
def test_a_script_answers_with_one_line(words: tuple[str, ...]) -> None:
    done = run_python(*words, timeout=120)  # of an hour and more that it would take
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
