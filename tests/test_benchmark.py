"""The benchmark's figures against arithmetic of its own, and what it prints and draws."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from config import BloomConfig, ConfigError, costs, parse_arguments
from utils.benchmark import run_benchmark
from utils.benchmark.arguments import Combination
from utils.benchmark.command import PROGRAM_BYTES
from utils.benchmark.comparison import Transformers
from utils.benchmark.limits import Limit, MachineLimits, sample_bytes
from utils.benchmark.measuring import Rounds, Samples, Timed
from utils.benchmark.plot import draw, picture
from utils.benchmark.report import Layers, Result, Start, result_of
from utils.benchmark.work import Work, work_of
from utils.checkpoints.random_weights import fill_randomly
from utils.generation import loading
from utils.generation.loading import build
from utils.generation.passes import Passes
from utils.setup import UserError

LAYERS, HIDDEN, VOCABULARY, LENGTH = 2, 64, 120, 32
SMALL = [
    *("--layers", str(LAYERS), "--hidden_size", str(HIDDEN), "--heads", "4"),
    *("--vocab_size", str(VOCABULARY), "--sequence_length", str(LENGTH)),
]
QUICK = [*SMALL, "--repeats", "2", "--prompt_tokens", "6", "--new_tokens", "4"]


def config_of(*words: str) -> BloomConfig:
    return parse_arguments([*SMALL, *words])[0]


def measured(capsys, *words: str) -> dict:
    run_benchmark([*words, "--json"])
    return json.loads(capsys.readouterr().out)


# --- what the model requires ---


def expected_weight_bytes(rows: int, itemsize: int) -> int:
    """Of what a token pass reads; the embedding is tied, and once more only rows of it are."""
    block = [
        *((HIDDEN, 3 * HIDDEN), (3 * HIDDEN,), (HIDDEN, HIDDEN), (HIDDEN,)),
        *((HIDDEN, 4 * HIDDEN), (4 * HIDDEN,), (4 * HIDDEN, HIDDEN), (HIDDEN,)),
        *[(HIDDEN,)] * 4,  # two norms
    ]
    outside = [(VOCABULARY, HIDDEN), *[(HIDDEN,)] * 4, (rows, HIDDEN)]
    return itemsize * sum(int(np.prod(s)) for s in [*block * LAYERS, *outside])


@pytest.mark.parametrize("sharding", [(1, 1), (2, 2)])
@pytest.mark.parametrize("precision, itemsize", [("float32", 4), ("bfloat16", 2)])
def test_bytes_of_a_step_are_those_of_the_shapes(sharding, precision, itemsize):
    rows = 3
    tp1, tp2 = map(str, sharding)
    words = ["--tensor_parallel_1", tp1, "--tensor_parallel_2", tp2, "--batch_size", str(rows)]
    config = config_of(*words, "--precision", precision)
    work = work_of(config, build(config))
    cache = 2 * LAYERS * HIDDEN * itemsize
    small_constants = 4 * (LAYERS * 4 + 1)  # slopes of ALiBi, and where the vocabulary begins
    weights = expected_weight_bytes(rows, itemsize)
    for filled in (1, 20):
        extra = work.step_bytes(rows, filled) - weights - rows * filled * cache
        assert 0 <= extra <= small_constants


def test_operations_of_a_prompt_are_those_of_the_shapes():
    config = config_of("--batch_size", "2", "--tensor_parallel_1", "4", "--tensor_parallel_2", "2")
    work = work_of(config, build(config))
    for tokens in (1, 7, 30):
        keys = sum(range(1, tokens + 1))  # of every query
        layer = 2 * tokens * 12 * HIDDEN**2 + 2 * keys * 2 * HIDDEN
        assert work.prompt_operations(tokens) == LAYERS * layer + 2 * HIDDEN * VOCABULARY


# --- figures ---


def samples_of(*times: tuple[float, int, float, float]) -> Samples:
    """Steps of (seconds, bytes, limit, the peer's seconds), one prompt before them."""
    samples = Samples(Combination(2, 10, 1 + len(times)))
    samples.first_tokens = [0.25, 0.25]
    samples.prompts = [Timed(0.5, 1000, 4000.0, 1.5)]
    samples.steps = [Timed(*time) for time in times]
    return samples


def result_by_hand(**changed: int) -> Result:
    samples = samples_of((0.1, 50, 1000.0, 0.2), (0.2, 60, 600.0, 0.6), (0.1, 70, 700.0, 0.1))
    samples.combination = samples.combination._replace(**changed)
    limits = MachineLimits("cpu", "eyes", "float32", ())
    return result_of(
        samples, Start(1.0, 2.0), Work(40, 1, 1, 1, 1), limits, 123, Layers(2, 2), "hf"
    )


def test_a_share_is_the_median_of_each_pass_by_the_limit_next_to_it():
    result = result_by_hand()
    assert result.prompt_share == pytest.approx(0.5)  # 1000 / 0.5 s by 4000
    assert result.decode_share == pytest.approx(0.5)  # of 0.5, 0.5 and 1
    assert result.read_bandwidth.median == 700
    assert result.prompt_tokens_per_second.median == pytest.approx(2 * 10 / 0.5)
    assert result.decode_tokens_per_second.median == pytest.approx(2 / 0.1)
    assert result.decode_tokens_per_second.low == pytest.approx(12)  # 10, 20, 20 interpolated
    assert result.time_to_first_token.median == 0.25


def test_the_ratio_to_a_peer_is_the_median_of_neighbouring_passes():
    comparison = result_by_hand().comparison
    assert comparison.prompt_ratio == pytest.approx(3)
    assert comparison.decode_ratio == pytest.approx(2)  # of 2, 3 and 1
    assert comparison.decode_tokens_per_second == pytest.approx(2 / 0.2)


def test_a_limit_is_the_mean_of_before_and_after():
    rates = iter([10.0, 20.0, 40.0])
    limit = Limit(lambda: next(rates))
    limit.begin()
    assert limit.end() == 15
    assert limit.end() == 30


# --- models larger than memory ---


DEEP = ["--layers", "50", "--device", "cpu"]


def room_for(layers: int, monkeypatch, *words: str) -> None:
    """Let so much memory be free that so many layers fit, and no more."""
    config = config_of(*words)
    model = dataclasses.replace(config.model, layers=layers)
    needed = sum(costs.needed(dataclasses.replace(config, model=model), True).values())
    taken = PROGRAM_BYTES + sample_bytes(config)
    monkeypatch.setattr(loading, "available_memory", lambda: needed / loading.ROOM + taken + 2)


def test_layers_that_fit_are_measured_and_the_whole_model_is_extrapolated(capsys, monkeypatch):
    room_for(3, monkeypatch, *DEEP)
    document = measured(capsys, *QUICK, *DEEP)
    (result,) = document["results"]
    assert (document["extrapolated"], result["layers"], result["measured_layers"]) == (True, 50, 3)
    whole = config_of(*DEEP)
    work = work_of(whole, build(whole))
    assert result["step_bytes"] == work.step_bytes(1, 6 + 4 // 2)
    assert result["prompt_operations"] == work.prompt_operations(6)


def test_times_are_extrapolated_by_the_work_of_each_pass():
    """Not by the number of layers: embedding and head are read once, whatever that is."""
    config = config_of("--device", "cpu")
    session = build(config)
    fill_randomly(session, np.random.default_rng(0))
    little = work_of(config, session)
    much = dataclasses.replace(little, weight_bytes=7 * little.weight_bytes, cache_bytes=0)
    samples = Samples(Combination(1, 4, 3))
    with session:
        rounds = Rounds(Passes(config, session), little, much, np.random.default_rng(0))
        rounds.run(samples, MachineLimits.of(config, 4), 1)
    assert [step.work for step in samples.steps] == [much.weight_bytes] * 2
    assert samples.prompts[0].work == much.prompt_operations(4)


def test_the_table_says_that_it_is_extrapolated(capsys, monkeypatch):
    room_for(3, monkeypatch, *DEEP)
    run_benchmark([*QUICK, *DEEP])
    text = capsys.readouterr().out
    assert "EXTRAPOLATED from 3 measured layers of 50" in text
    assert "3 of 50" in text


def test_where_all_layers_fit_nothing_is_extrapolated(capsys):
    document = measured(capsys, *QUICK)
    assert (document["extrapolated"], document["results"][0]["measured_layers"]) == (False, LAYERS)


def test_where_no_layer_fits_one_line_says_what_would(monkeypatch):
    monkeypatch.setattr(loading, "available_memory", lambda: 10_000)
    with pytest.raises(UserError, match=r"more memory than the 0\.0 MB that are free"):
        run_benchmark([*QUICK, "--device", "cpu"])


@pytest.mark.parametrize("precision", ["full", "int4"])
def test_random_maps_are_made_once_and_measured(precision, capsys, tmp_path):
    maps = tmp_path / "maps"
    kind = ["--weight_precision", precision, "--group_size", "8"]
    words = [*QUICK, *kind, "--memmap_dir", str(maps)]
    run_benchmark([*words, "--json"])
    printed = capsys.readouterr()
    assert json.loads(printed.out)["complete"]
    assert "random ones are made there" in printed.err
    files = {path: path.stat().st_mtime_ns for path in maps.iterdir()}
    assert measured(capsys, *words)["complete"]
    assert {path: path.stat().st_mtime_ns for path in maps.iterdir()} == files
    written = sum(path.stat().st_size for path in maps.glob("*.safetensors"))
    assert written > 0.9 * costs.weight_bytes(config_of(*kind))


# --- what is printed ---


def test_every_combination_is_a_result(capsys):
    document = measured(
        capsys,
        *(*SMALL, "--repeats", "2", "--batch_size", "1", "3"),
        *("--prompt-tokens", "4", "20", "--new_tokens", "3", "5"),
    )
    found = [
        (r["batch_size"], r["prompt_tokens"], r["new_tokens"], r["rounds"])
        for r in document["results"]
    ]
    assert found == [(b, p, n, 2) for b in (1, 3) for p in (4, 20) for n in (3, 5)]
    assert document["complete"] is True
    assert document["settings"]["model"]["layers"] == LAYERS


def test_the_json_is_consistent(capsys):
    document = measured(capsys, *QUICK, "--batch_size", "2")
    (result,) = document["results"]
    config = config_of("--batch_size", "2")
    work = work_of(config, build(config))
    assert result["step_bytes"] == work.step_bytes(2, 6 + 4 // 2)
    assert result["prompt_operations"] == 2 * work.prompt_operations(6)
    for name in ("prompt_tokens_per_second", "decode_tokens_per_second", "time_to_first_token"):
        spread = result[name]
        assert 0 < spread["low"] <= spread["median"] <= spread["high"]
    assert result["decode_share"] > 0 and result["prompt_share"] > 0
    assert result["peak_memory_bytes"] > 1e7
    assert result["comparison"] is None
    assert result["matmul_precision"] == "float32"


def test_the_table_has_a_line_for_each_result(capsys):
    run_benchmark([*QUICK, "--batch_size", "1", "2"])
    lines = capsys.readouterr().out.splitlines()
    header = next(i for i, line in enumerate(lines) if line.split()[:1] == ["batch"])
    assert [line.split()[0] for line in lines[header + 1 :]] == ["1", "2"]
    assert "of bandwidth" in lines[header]


def test_an_interrupt_prints_what_was_measured(capsys, monkeypatch):
    run_decode, calls = Passes.decode, []

    def decode(self, *arguments):
        calls.append(arguments)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return run_decode(self, *arguments)

    monkeypatch.setattr(Passes, "decode", decode)
    # Calls: 1 and 2 to warm up, 3 of each of two rounds, then those of the second batch size.
    with pytest.raises(KeyboardInterrupt):
        run_benchmark([*QUICK, "--batch_size", "1", "2", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["complete"] is False
    assert [(r["batch_size"], r["rounds"]) for r in document["results"]] == [(1, 2)]


# --- the peer ---


@pytest.mark.parametrize("sharding", ["1", "2"])
def test_the_peer_has_the_same_weights_and_gives_the_same_logits(sharding):
    words = ["--tensor_parallel_1", sharding, "--tensor_parallel_2", sharding, "--batch_size", "2"]
    config = config_of(*words)
    peer, session = Transformers(config, seed=1), build(config)
    peer.write(config, session)
    prompts = np.random.default_rng(0).integers(VOCABULARY, size=(2, 9))
    with session:
        passes = Passes(config, session)
        logits = np.stack([passes.prefill(row, prompt) for row, prompt in enumerate(prompts)])
        np.testing.assert_allclose(peer.prefill(prompts), logits, atol=1e-4)
        assert np.ptp(logits) > 0.1
        for position in range(9, 13):
            tokens = logits.argmax(-1).astype(np.int32)
            logits = passes.decode(tokens, np.full(2, position, np.int32))
            np.testing.assert_allclose(peer.decode(tokens), logits, atol=1e-4)


def test_the_comparison_is_reported(capsys):
    (result,) = measured(capsys, *QUICK, "--compare", "hf")["results"]
    comparison = result["comparison"]
    assert comparison["peer"] == "hf"
    assert comparison["decode_ratio"] > 0 and comparison["prompt_ratio"] > 0
    assert comparison["logits_differ_by"] < 1e-4


# --- the picture ---


def test_the_picture_shows_measured_rates_under_their_limits():
    results = [result_by_hand(batch_size=b, prompt_tokens=p) for b in (1, 2) for p in (10, 20)]
    figure = picture(config_of(), results)
    assert [a.get_xlabel() for a in figure.axes] == [
        "batch size",
        "context, tokens",
        "prompt, tokens",
    ]
    assert [len(a.lines) for a in figure.axes] == [4, 4, 4]  # two values, each with its limit
    measured, limit = figure.axes[0].lines[:2]
    assert list(measured.get_xdata()) == [1, 2]
    first = results[0]
    assert measured.get_ydata()[0] == first.decode_tokens_per_second.median
    assert limit.get_ydata()[0] == pytest.approx(first.read_bandwidth.median / first.step_bytes)


def test_the_picture_is_a_png(tmp_path, capsys):
    file = tmp_path / "speed.png"
    run_benchmark([*QUICK, "--plot", str(file)])
    from matplotlib.image import imread  # late: it takes a second

    pixels = imread(file)
    assert pixels.shape[0] > 300 and pixels.shape[1] > 900
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 20
    assert list(tmp_path.iterdir()) == [file]


def test_a_picture_that_cannot_be_drawn_leaves_nothing(tmp_path, monkeypatch):
    def fail(figure, file: Path, **_):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        draw(config_of(), [result_by_hand()], tmp_path / "speed.png")
    assert not list(tmp_path.iterdir())


# --- what is refused ---


@pytest.mark.parametrize(
    "words, named",
    [
        (["--prompt_tokens", "4", "0"], "prompt_tokens must be 1 or more, not 0"),
        (["--new_tokens", "1"], "new_tokens must be 2 or more, not 1"),
        (["--prompt_tokens", "4", "30"], "at most sequence_length = 32, not 34"),
        (["--repeats", "0"], "repeats must be 1 or more, not 0"),
        (["--batch_size", "1", "0"], "batch_size must be 1 or more, not 0"),
        (["--batch_size", "two"], "invalid int value: 'two'"),
        (["--batch_size"], "expected at least one argument"),
        (["--plot", "speed.jpg"], r"plot must be a file that ends in \.png, not 'speed\.jpg'"),
        (["--plot", "nowhere/speed.png"], "no folder 'nowhere'"),
        (["--compare", "gpt"], "compare must be one of hf, not 'gpt'"),
        (["--compare", "hf", "--model_type", "gpt2"], "knows model_type bloom alone, not gpt2"),
        (["--compare", "hf", "--memmap_dir", "maps"], "leave out --memmap_dir"),
        (["--dry_run", "--compare", "hf"], "--compare measures, --dry_run does not"),
        (["--dry_run", "--batch_size", "1", "2"], "--dry_run plans for one --batch_size"),
    ],
)
def test_impossible_arguments_are_one_line(words, named):
    with pytest.raises((ConfigError, UserError), match=named) as caught:
        run_benchmark([*SMALL, "--new_tokens", "4", *words])
    assert "\n" not in str(caught.value)


# --- weights ---


def test_random_weights_give_activations_of_a_usual_size():
    config = config_of("--precision", "float16")
    session = build(config)
    fill_randomly(session, np.random.default_rng(0))
    scale = session.get_tensor_data(session.state.layer_0.ln_1.norm.weight)
    assert 0.9 < scale.mean() < 1.1 and scale.std() > 0.01
    table = session.get_tensor_data(session.state.embeddings.weight)
    assert abs(table.mean()) < 0.01 and 0.015 < table.std() < 0.025


def test_sessions_alike_get_the_same_weights():
    one, other = (build(config_of("--batch_size", rows)) for rows in ("1", "2"))
    fill_randomly(one, np.random.default_rng(0), other)
    tokens = np.arange(5)
    with one, other:
        logits = [Passes(config_of(), s).prefill(0, tokens) for s in (one,)]
        logits.append(Passes(config_of("--batch_size", "2"), other).prefill(1, tokens))
    np.testing.assert_allclose(*logits, atol=1e-5)
