"""How much faster look-up decoding is, on text that repeats itself and on text that does not.

    python benchmarks/lookup.py --config bloom_tiny
    python benchmarks/lookup.py --config bloom_560M --precision bfloat16 --random_weights

Each text is generated plainly and with look-up in turn, round by round, by one program; both must
be the same. `--lookup_tokens` is 15 where it is not given. Rates are those of decoding, after the
first token.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from popxl import Variable
from popxl_shared.alibi import alibi_slopes

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from random_model import random_model  # noqa: E402 - found just above

from config import BloomConfig, parse_arguments  # noqa: E402
from config.config import MOST_LOOKUP_TOKENS  # noqa: E402
from config.options import field  # noqa: E402
from modelling.sharding import shard_vector  # noqa: E402
from utils.generation import (  # noqa: E402
    GenerationStep,
    LanguageModel,
    load,
    stream_generate,
)
from utils.generation.passes import Passes  # noqa: E402
from utils.generation.sampling import SamplingConfig  # noqa: E402
from utils.setup import UserError, run_script, setup_logging  # noqa: E402

DESCRIPTION = "Measure look-up decoding against plain decoding."
TABLE = "".join(
    f"| {name} | red | 10 | in stock | ships in two days |\n"
    for name in ("apple", "cherry", "plum", "apple", "cherry", "plum", "apple")
)
STORY = "One day the king of the country"
TEXTS = {
    "a table, greedy": (TABLE, SamplingConfig()),
    "a story, greedy": (STORY, SamplingConfig()),
    "a story, temperature 1": (STORY, SamplingConfig(temperature=1.0, seed=1)),
}


@dataclass
class LookupArguments:
    """What to measure."""

    new_tokens: int = field(default=192, help="generate so many tokens, 2 or more")
    rounds: int = field(default=6, help="generate each text so many times both ways, 1 or more")
    random_weights: bool = field(
        default=False,
        help="use random weights and bloom_tiny's tokenizer in place of a checkpoint",
    )
    seed: int = field(default=0, help="seed of random weights")
    json: bool = field(default=False, help="print one JSON object")


@dataclass(frozen=True)
class Compared:
    """One text both ways: medians of tokens a second, and what look-up did."""

    tokens: int
    plain: float
    lookup: float
    ratio: float  # the median of the rounds'
    verify_passes: int
    proposed_tokens: int
    accepted_tokens: int
    same: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark's command line; status 1 where a text differs."""
    config, arguments = parse_arguments(
        argv, extra=LookupArguments, prog="lookup.py", description=DESCRIPTION
    )
    setup_logging("warning")
    if arguments.new_tokens < 2 or arguments.rounds < 1:
        raise UserError("new_tokens must be 2 or more, and rounds 1 or more")
    tokens = config.execution.lookup_tokens or MOST_LOOKUP_TOKENS
    config = config.changed(lookup_tokens=tokens)
    loaded = with_slopes(config, arguments.seed) if arguments.random_weights else load(config)
    loaded.passes.warm_up()
    results = {name: compare(loaded, *text, arguments) for name, text in TEXTS.items()}
    if arguments.json:
        print(json.dumps({k: dataclasses.asdict(v) for k, v in results.items()}, indent=2))
    else:
        print(describe(config, results))
    return 0 if all(result.same for result in results.values()) else 1


def with_slopes(config: BloomConfig, seed: int) -> LanguageModel:
    """Random weights but for ALiBi's slopes: attention must be to what is near."""
    loaded = random_model(config, seed)
    slopes = shard_vector(config, alibi_slopes(config.model.heads), "tp1")
    for variable in loaded.passes.session.state.values_flat():
        if isinstance(variable, Variable) and variable.name.endswith("alibi_slopes"):
            loaded.passes.session.write_variable_data(variable, slopes)
    return loaded


def compare(
    loaded: LanguageModel, prompt: str, sampling: SamplingConfig, arguments: LookupArguments
) -> Compared:
    """Rounds of both ways."""
    plain = Passes(loaded.passes.config.changed(lookup_tokens=0), loaded.passes.session)
    ways = {"plain": LanguageModel(plain, loaded.tokenizer), "lookup": loaded}
    rates: dict[str, list[float]] = {way: [] for way in ways}
    found: dict[str, list[GenerationStep]] = {}
    for number in range(arguments.rounds):
        for way in sorted(ways, reverse=bool(number % 2)):  # neither is always the first
            found[way] = list(
                stream_generate(ways[way], prompt, sampling, num_tokens=arguments.new_tokens)
            )
            rates[way].append(found[way][-1].tokens_per_second or 0)
    last = found["lookup"][-1]
    texts = [[step.token for step in steps] for steps in found.values()]
    pairs = zip(rates["lookup"], rates["plain"], strict=True)
    return Compared(
        tokens=last.generated_tokens,
        plain=statistics.median(rates["plain"]),
        lookup=statistics.median(rates["lookup"]),
        ratio=statistics.median(lookup / plain for lookup, plain in pairs),
        verify_passes=last.verify_passes,
        proposed_tokens=last.proposed_tokens,
        accepted_tokens=last.accepted_tokens,
        same=texts[0] == texts[1],
    )


def describe(config: BloomConfig, results: dict[str, Compared]) -> str:
    """A table for a person."""
    model = config.model
    lines = [
        f"{model.layers} layers, hidden size {model.hidden_size}, vocabulary {model.vocab_size}, "
        f"{model.precision}, up to {config.execution.lookup_tokens} tokens proposed",
        f"{'':24}{'tokens':>8}{'plain':>10}{'look-up':>10}{'ratio':>8}{'right/proposed':>18}"
        f"{'verify passes':>16}",
    ]
    for name, found in results.items():
        right = f"{found.accepted_tokens}/{found.proposed_tokens}"
        lines.append(
            f"{name:24}{found.tokens:8}{found.plain:10.1f}{found.lookup:10.1f}{found.ratio:8.2f}"
            f"{right:>18}{found.verify_passes:16}{'' if found.same else '   TEXTS DIFFER'}"
        )
    return "\n".join([*lines, "plain and look-up are tokens/s, medians; ratio is theirs by rounds"])


if __name__ == "__main__":
    run_script(main)
