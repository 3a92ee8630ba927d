"""Look-up decoding: what it proposes, and that the text is that of plain decoding."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import popxl
import pytest
from bloom_checkpoints import config_of, logits_of, passes_of, random_bloom
from byte_level import byte_level_tokenizer
from popxl import ops
from popxl_shared.alibi import alibi_slopes
from serving import HeldPasses, ReferencePasses, request, wait_until
from transformers import BloomForCausalLM

from config import BloomConfig, load_config
from modelling.cached_attention import token_attention, verify_attention
from modelling.pass_sizes import verify_sizes
from modelling.program import inference
from run_inference import main
from utils.generation import (
    Engine,
    GenerationStep,
    LanguageModel,
    SamplingConfig,
    load,
    stream_generate,
)
from utils.generation.lookup import PromptLookup
from utils.generation.passes import Passes

GREEDY = SamplingConfig()
PROMPT = "A dog is"
SIZES = (4, 8, 16)
LENGTH = 40


# --- what is proposed ---


def followed(ids: list[int], count: int) -> list[int]:
    """By scanning: what came after the latest earlier end of the longest n-gram that ends `ids`."""
    for length in (4, 3, 2):
        for end in range(len(ids) - 1, length - 1, -1):
            if ids[end - length : end] == ids[-length:] and len(ids) >= length:
                return list(itertools.islice(itertools.cycle(ids[end:]), count))
    return []


def test_proposals_are_what_a_scan_of_the_text_finds():
    random = np.random.default_rng(0)
    found = 0
    for vocabulary in (2, 5, 30):
        ids = random.integers(vocabulary, size=7).tolist()
        lookup = PromptLookup([6])
        for _ in range(150):
            proposal = lookup.propose(ids, room=100)
            if proposal:
                assert proposal == followed(ids, 5)
                found += 1
            # Some of what was proposed comes true, so that it goes on proposing.
            ids += [token for token in proposal[: random.integers(3)] if lookup.confirm(token)]
            ids.append(int(random.integers(vocabulary)))
    assert found > 100
    assert lookup.proposed == 5 * lookup.passes > lookup.accepted > 0


def test_a_text_that_repeats_itself_is_proposed_beyond_its_end():
    assert PromptLookup([16]).propose([9, 1, 2, 3, 1, 2], room=99) == [3, 1, 2] * 5


def test_passes_widen_with_success_and_narrow_without():
    ids = [1, 2, 3, 4] * 3
    lookup = PromptLookup(SIZES)
    lengths = []
    for accepted in (3, 7, 15, 15, 5, 2, 1):
        proposal = lookup.propose(ids, room=99)
        lengths.append(len(proposal))
        assert all(lookup.confirm(token) for token in proposal[:accepted])
        ids += proposal[:accepted]
        while ids[-3:] != [2, 3, 4]:  # back to the beginning of a round
            ids.append(ids[-1] % 4 + 1)
    assert lengths == [3, 7, 15, 15, 15, 7, 3]


def test_proposals_that_fail_become_rare_and_come_back_with_success():
    ids, tried = [1, 2] * 3, []
    lookup = PromptLookup(SIZES)
    for number in range(200):
        if lookup.propose(ids, room=99):
            tried.append(number)
            assert not lookup.confirm(7)
        ids += [1, 2]
    gaps = np.diff(tried).tolist()
    assert gaps == [2, 4, 8, 16, 32, 32, 32, 32, 32]
    while not (proposal := lookup.propose(ids, room=99)):
        pass
    assert lookup.confirm(proposal[0])
    assert lookup.propose(ids, room=99)


@pytest.mark.parametrize("room, count", [(16, 15), (15, 7), (8, 7), (4, 3), (3, 0), (1, 0)])
def test_proposals_fill_the_widest_pass_that_the_context_has_room_for(room, count):
    ids = [5] * 30
    lookup = PromptLookup(SIZES)
    for _ in range(3):
        assert all(lookup.confirm(token) for token in lookup.propose(ids, room=99))
    assert len(lookup.propose(ids, room)) == count


@pytest.mark.parametrize(
    "tokens, sizes",
    [(0, ()), (1, (2,)), (4, (5,)), (7, (4, 8)), (10, (6, 11)), (15, (4, 8, 16))],
)
def test_verify_passes_are_the_tokens_and_halves_of_them(tokens, sizes):
    assert verify_sizes(load_config("bloom_tiny", {"lookup_tokens": tokens})) == sizes


# --- the program ---


def lookup_config(model: BloomForCausalLM, tp1: int = 1, tp2: int = 1, **settings) -> BloomConfig:
    config = config_of(model, tp1, tp2, sequence_length=LENGTH, **settings)
    return replace(config, execution=replace(config.execution, lookup_tokens=7)).validate()


@pytest.mark.parametrize("tp1, tp2", [(1, 1), (4, 4)])
@pytest.mark.parametrize("kernels", [True, False])
def test_a_verify_pass_gives_transformers_logits_at_each_place(tp1, tp2, kernels):
    model = random_bloom()
    text = np.random.default_rng(0).integers(130, size=LENGTH).tolist()
    expected = logits_of(model, text)
    config = lookup_config(model, tp1, tp2)
    with passes_of(model, config, composite_kernels=kernels) as passes:
        passes.prefill(2, text[:9])
        for at, count in [(9, 8), (17, 3), (20, 5), (25, 1), (32, 8)]:
            if at == 32:
                passes.prefill(2, text[:32], start=26)
            logits = passes.verify(2, text[at : at + count], at)
            assert logits.shape == (count, 130)
            np.testing.assert_allclose(logits, expected[at : at + count], atol=1e-4)


@pytest.mark.parametrize("dtype", [popxl.float32, popxl.bfloat16])
def test_attention_of_a_verify_pass_is_that_of_token_passes_to_the_bit(dtype):
    heads, size, before, tokens = 3, 8, 5, 4
    random = np.random.default_rng(0)
    shapes = [(tokens, heads, size)] * 3 + [(1, heads, LENGTH, size)] * 2
    values = [random.normal(size=shape).astype(dtype.as_numpy()) for shape in shapes]
    slopes = alibi_slopes(heads)
    at = np.arange(before, before + tokens, dtype=np.int32)
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        q, k, v = [popxl.constant(value) for value in values[:3]]
        once, each = [[popxl.variable(value) for value in values[3:]] for _ in range(2)]
        rest = [popxl.constant(slopes), popxl.constant(at), popxl.constant(0, popxl.int32)]
        graph = ir.create_graph(verify_attention, q, k, v, *once, *rest)
        (verified,) = ops.call(graph, q, k, v, *once, *rest)
        row = popxl.constant([0], popxl.int32)
        given = [[t[i : i + 1] for t in (q, k, v, rest[1])] for i in range(tokens)]
        graph = ir.create_graph(token_attention, *given[0][:3], *each, rest[0], given[0][3], row)
        found = [ops.call(graph, *one[:3], *each, rest[0], one[3], row)[0] for one in given]
        streams = []
        for result in (verified, ops.concat(found)):
            streams.append(popxl.d2h_stream(result.shape, result.dtype))
            ops.host_store(streams[-1], result)
    with popxl.Session(ir) as session:
        outputs = session.run({})
        np.testing.assert_array_equal(outputs[streams[0]], outputs[streams[1]])
        for one, other in zip(once, each, strict=True):
            np.testing.assert_array_equal(
                session.get_tensor_data(one), session.get_tensor_data(other)
            )


@pytest.mark.parametrize(
    "precision, kernels", [("float32", True), ("bfloat16", True), ("float32", False)]
)
def test_what_was_rejected_is_never_looked_at_again(precision, kernels):
    """After wrong proposals all passes give the same bits as if they had not been made."""
    model = random_bloom()
    config = lookup_config(model, precision=precision)
    text = np.random.default_rng(1).integers(130, size=LENGTH).tolist()

    def run(wrong: bool) -> list[np.ndarray]:
        with passes_of(model, config, composite_kernels=kernels) as passes:
            found = [passes.prefill(1, text[:9])]
            for at in range(9, 20):
                if wrong:
                    passes.verify(1, [text[at], 3, 1, 4, 1, 5, 9, 2], at)
                found.append(passes.decode(*token_of_slot(passes, 1, text[at], at))[1])
            found.append(passes.verify(1, text[20:24], 20))
            if wrong:
                passes.verify(1, [text[24]] * 8, 24)
            found.append(passes.prefill(1, text[:28], start=24))
            return found

    for one, other in zip(run(True), run(False), strict=True):
        np.testing.assert_array_equal(one, other)


def token_of_slot(passes: Passes, row: int, token: int, at: int) -> tuple[np.ndarray, np.ndarray]:
    tokens, positions = np.zeros((2, passes.batch_size), np.int32)
    tokens[row], positions[row] = token, at
    return tokens, positions


def test_a_verify_pass_leaves_other_slots_alone():
    model = random_bloom()
    text = np.random.default_rng(2).integers(130, size=20).tolist()

    def last(verify: bool) -> np.ndarray:
        with passes_of(model, lookup_config(model)) as passes:
            passes.prefill(0, text)
            if verify:
                passes.prefill(1, text[:5])
                passes.verify(1, text[5:13], 5)
            return passes.decode(*token_of_slot(passes, 0, 7, 20))[0]

    np.testing.assert_array_equal(last(True), last(False))


def test_a_verify_pass_that_does_not_fit_is_refused():
    model = random_bloom()
    with passes_of(model, lookup_config(model)) as passes:
        for tokens, position in [(9, 0), (8, LENGTH - 7), (2, LENGTH - 3)]:
            with pytest.raises(ValueError, match=f"holds {tokens} at {position} of {LENGTH}"):
                passes.verify(0, [1] * tokens, position)


SHARED = [f"share_{size}" for size in (8, 16, 32)]


def test_without_look_up_the_program_has_no_pass_and_no_stream_for_it():
    model = random_bloom()
    plain = inference(config_of(model))
    assert [*plain.outputs.keys()] == ["decode", "decode_1", "prefill", "share"]
    assert [*plain.pass_graphs] == ["decode", "decode_1", "prefill_4", "prefill_16", *SHARED]
    session = inference(lookup_config(model))
    assert {*session.pass_graphs} - {*plain.pass_graphs} == {"verify_4", "verify_8"}


# --- the text ---


class Chain(ReferencePasses):
    """A Markov chain: the logits depend on the last token alone, so that text soon repeats."""

    def __init__(self, verify: Sequence[int] = (), batch_size: int = 1, sequence_length: int = 400):
        self.tokenizer = byte_level_tokenizer()
        self.vocab_size = len(self.tokenizer)
        self.batch_size, self.sequence_length = batch_size, sequence_length
        self.verify_sizes = tuple(verify)
        self.log: list[tuple[str, Any]] = []
        self._rows = np.zeros((batch_size, sequence_length), np.int64)
        random = np.random.default_rng(4)
        self.table = random.normal(size=(self.vocab_size,) * 2).astype(np.float32) * 2
        self.table[:, :3] -= 30  # special tokens

    def _logits(self, row: int, length: int) -> np.ndarray:
        return self.table[self._rows[row, length - 1]]

    def steps(
        self, sampling: SamplingConfig = GREEDY, prompt: str = PROMPT, **settings: Any
    ) -> list[GenerationStep]:
        settings = {"num_tokens": 120, **settings}
        return list(stream_generate(self.model(), prompt, sampling, **settings))

    def model(self) -> LanguageModel:
        return LanguageModel(self, self.tokenizer)  # type: ignore[arg-type]

    def count(self, kind: str) -> int:
        return sum(made == kind for made, _ in self.log)


def said(steps: Sequence[GenerationStep]) -> list[tuple]:
    """All of the steps but times and counts."""
    return [(s.text, s.token, s.finish_reason, s.prompt_tokens, s.generated_tokens) for s in steps]


@pytest.fixture(scope="module", params=[1, 4], ids=["1x1", "4x4"])
def tiny(request: pytest.FixtureRequest) -> Iterator[LanguageModel]:
    """The checkpoint that ships, in float32."""
    sharding = dict.fromkeys(("tensor_parallel_1", "tensor_parallel_2"), request.param)
    loaded = load(load_config("bloom_tiny", {"lookup_tokens": 15, **sharding}))
    yield loaded
    loaded.passes.session.__exit__(None, None, None)


@pytest.mark.parametrize(
    "prompt",
    ["1. red\n2. green\n3. blue\n1. red\n", "The king of the north", "x = [1, 2, 3]\ny = [1, 2,"],
)
def test_greedy_tokens_of_the_program_are_those_of_plain_decoding(
    tiny: LanguageModel, prompt: str
) -> None:
    execution = replace(tiny.passes.config.execution, lookup_tokens=0)
    plain = Passes(replace(tiny.passes.config, execution=execution), tiny.passes.session)
    found = [
        list(stream_generate(LanguageModel(passes, tiny.tokenizer), prompt, num_tokens=220))
        for passes in (plain, tiny.passes)
    ]
    assert said(found[1]) == said(found[0])
    last = found[1][-1]
    assert last.generated_tokens == 220
    assert last.accepted_tokens > 60


SAMPLING = [
    SamplingConfig(temperature=1.0, top_k=3),
    SamplingConfig(temperature=0.5),
    SamplingConfig(temperature=0.7, top_p=0.8),
    SamplingConfig(temperature=0.5, top_k=9, top_p=0.9, repetition_penalty=1.02),
]


@pytest.mark.parametrize("sampling", SAMPLING, ids=repr)
def test_every_seed_gives_the_text_that_it_gives_without_look_up(sampling: SamplingConfig) -> None:
    """So the distribution of texts is the same too."""
    plain, lookup = Chain(), Chain(SIZES)
    right = wrong = 0
    for seed in range(20):
        steps = lookup.steps(replace(sampling, seed=seed))
        assert said(steps) == said(plain.steps(replace(sampling, seed=seed)))
        right += steps[-1].accepted_tokens
        wrong += steps[-1].proposed_tokens - steps[-1].accepted_tokens
    assert right > 20 and wrong > 20


def test_a_repetition_penalty_counts_the_tokens_before_each_place() -> None:
    sampling = SamplingConfig(repetition_penalty=1.03)
    plain, lookup = Chain().steps(sampling), Chain(SIZES).steps(sampling)
    assert said(lookup) == said(plain)
    assert said(plain) != said(Chain().steps())
    assert lookup[-1].accepted_tokens > 5


def test_repeating_text_takes_few_passes_and_the_steps_count_them() -> None:
    passes = Chain(SIZES)
    steps = passes.steps()
    last = steps[-1]
    assert last.verify_passes == passes.count("verify") > 0
    assert last.accepted_tokens > 60
    assert 1 + passes.count("decode") + last.verify_passes + last.accepted_tokens >= 120
    assert passes.count("decode") + last.verify_passes < 40
    counts = [(s.verify_passes, s.proposed_tokens, s.accepted_tokens) for s in steps]
    assert counts == sorted(counts) and counts[0] == (0, 0, 0)


def inside_of_a_run(steps: Sequence[GenerationStep]) -> list[int]:
    """Places of steps that were accepted and after which the same pass has more."""
    return [
        place
        for place in range(1, len(steps) - 1)
        if steps[place - 1].accepted_tokens
        < steps[place].accepted_tokens
        < steps[place + 1].accepted_tokens
        and steps[place].verify_passes == steps[place + 1].verify_passes
    ]


def test_a_stop_string_within_an_accepted_run_ends_the_text_there() -> None:
    free = Chain(SIZES).steps()
    place = inside_of_a_run(free)[20]
    stop = "".join(step.text for step in free[2 : place + 1])
    steps = Chain(SIZES).steps(stop=[stop])
    assert said(steps) == said(Chain().steps(stop=[stop]))
    assert (steps[-1].finish_reason, len(steps)) == ("stop_string", place + 1)


@pytest.mark.parametrize("at", range(0, 60, 7))
def test_a_budget_spent_within_an_accepted_run_ends_the_text_there(at: int) -> None:
    free = Chain(SIZES).steps()
    place = inside_of_a_run(free)[at]
    steps = Chain(SIZES).steps(num_tokens=place + 1)
    assert said(steps) == said(Chain().steps(num_tokens=place + 1))
    assert [s.finish_reason for s in steps] == [None] * place + ["budget"]


def test_end_of_text_within_an_accepted_run_ends_the_text_there() -> None:
    prompt = "0123456789" * 3
    ways = []
    for sizes in ((), SIZES):
        passes = Chain(sizes)
        ids = passes.tokenizer(prompt).input_ids
        passes.table[ids[:-1], ids[1:]] = 50  # goes on as the prompt does
        passes.tokenizer.eos_token = "2"
        ways.append(passes.steps(prompt=prompt))
    assert said(ways[0]) == said(ways[1])
    assert [step.finish_reason for step in ways[1]] == [None, None, "end_of_text"]
    assert (ways[1][-1].verify_passes, ways[1][-1].accepted_tokens) == (1, 2)


@pytest.mark.parametrize("length", range(60, 80))
def test_a_full_context_ends_the_text_as_without(length: int) -> None:
    lookup = Chain(SIZES, sequence_length=length)
    steps = lookup.steps()
    assert said(steps) == said(Chain(sequence_length=length).steps())
    assert steps[-1].finish_reason == "context_full"
    assert lookup.count("verify") > 3


def test_text_comes_a_step_a_token_and_may_be_left_in_the_middle_of_a_run() -> None:
    passes = Chain(SIZES)
    free = passes.steps()
    place = inside_of_a_run(free)[10]
    steps = stream_generate(passes.model(), PROMPT, num_tokens=120)
    assert said(list(itertools.islice(steps, place + 1))) == said(free[: place + 1])
    steps.close()  # type: ignore[attr-defined]
    assert said(passes.steps()) == said(free)


def test_the_command_line_says_how_many_proposals_were_right(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--prompt", PROMPT, "--num_tokens", "120", "--json"]
    for passes in (Chain(SIZES), Chain()):
        last = passes.steps()[-1]
        assert main(arguments, load=lambda _, passes=passes: passes.model()) == 0
        output, errors = capsys.readouterr()
        counts = {
            "verify_passes": last.verify_passes,
            "proposed_tokens": last.proposed_tokens,
            "accepted_tokens": last.accepted_tokens,
        }
        found = json.loads(output).get("lookup")
        assert found == (counts if passes.verify_sizes else None)
        words = f"{last.accepted_tokens} of {last.proposed_tokens} proposed tokens right"
        assert (words in errors) == bool(passes.verify_sizes)


# --- the engine ---


def test_one_request_alone_in_the_engine_looks_up_and_gives_the_same_text() -> None:
    passes = Chain(SIZES, batch_size=3)
    with Engine(passes) as engine:
        steps = list(engine.run(request(passes, passes.tokenizer, PROMPT, 120)))
        counted = engine.statistics()
    plain = Chain().steps()
    assert said(steps) == said(plain)
    assert counted.verify_passes == passes.count("verify") > 0
    assert counted.proposed_tokens >= counted.accepted_tokens > 60
    assert passes.count("decode") + counted.verify_passes + counted.accepted_tokens >= 119


def test_requests_that_come_and_go_all_have_the_text_that_they_have_alone() -> None:
    passes = Chain(SIZES, batch_size=2)
    lengths = (90, 20, 120, 7, 60)
    with Engine(passes) as engine:
        running = [engine.run(request(passes, passes.tokenizer, PROMPT, n)) for n in lengths]
        texts = [said(list(events)) for events in running]
    assert texts == [said(Chain().steps(num_tokens=n)) for n in lengths]
    kinds = [kind for kind, _ in passes.log]
    assert "verify" in kinds and "decode" in kinds


def test_two_requests_at_once_share_token_passes() -> None:
    chain = Chain(SIZES, batch_size=2)
    passes = HeldPasses(chain)
    passes.hold()
    with Engine(passes) as engine:
        tickets = [engine.submit(request(passes, chain.tokenizer, PROMPT, 50)) for _ in range(2)]
        passes.let_all()
        wait_until(lambda: all(ticket.end for ticket in tickets))
    kinds = [kind for kind, _ in chain.log]
    both_read = len(kinds) - kinds[::-1].index("prefill")
    assert kinds[both_read : both_read + 35] == ["decode"] * 35


def test_one_who_leaves_in_the_middle_of_a_run_frees_the_slot() -> None:
    passes = Chain(SIZES)
    with Engine(passes) as engine:
        events = engine.run(request(passes, passes.tokenizer, PROMPT, 120))
        assert len(list(itertools.islice(events, 50))) == 50
        events.close()  # type: ignore[attr-defined]
        wait_until(lambda: engine.statistics().running == 0)
        again = list(engine.run(request(passes, passes.tokenizer, PROMPT, 120)))
    assert said(again) == said(Chain().steps())


def test_a_verify_pass_that_fails_ends_its_request_alone() -> None:
    class Failing(Chain):
        def verify(self, *_: object) -> np.ndarray:
            raise RuntimeError("no verify pass today")

    passes = Failing(SIZES)
    with Engine(passes) as engine:
        with pytest.raises(RuntimeError, match="today"):
            list(engine.run(request(passes, passes.tokenizer, PROMPT, 120)))
        assert len(list(engine.run(request(passes, passes.tokenizer, PROMPT, 2)))) == 2
