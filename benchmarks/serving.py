"""How fast the page's server is for many clients at once, against one after another.

    python benchmarks/serving.py --config bloom_tiny
    python benchmarks/serving.py --config bloom_560M --random_weights

Both are measured in one run, through `gradio_client` and the whole server, with the clients in a
process of their own, and every text must be the same both times. `--batch_size` is the server's
rows, 8 where it is not given.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from config import BloomConfig, load_config, parse_arguments  # noqa: E402 - found just above
from config.options import field  # noqa: E402
from run_inference_gradio import for_many  # noqa: E402
from utils.checkpoints.random_weights import fill_randomly  # noqa: E402
from utils.generation.engine import Engine  # noqa: E402
from utils.generation.language_model import LanguageModel  # noqa: E402
from utils.generation.loading import build, load  # noqa: E402
from utils.generation.passes import Passes  # noqa: E402
from utils.generation.tokenizer import load_tokenizer  # noqa: E402
from utils.serving.service import Service  # noqa: E402
from utils.setup import UserError, run_script, setup_logging  # noqa: E402

CLIENTS = Path(__file__).with_name("serving_clients.py")
DESCRIPTION = "Measure the page's server with many clients at once, and with one after another."
BEGINNINGS = (
    *("A dog is", "The house on the hill", "In the beginning", "One day the king"),
    *("When the sun rises", "What is a", "There was a man who", "If you ask me"),
)


@dataclass
class ServingArguments:
    """What to measure."""

    clients: int = field(default=16, help="start so many clients with one request each, 1 or more")
    new_tokens: int = field(default=64, help="have each ask for so many tokens, 2 or more")
    random_weights: bool = field(
        default=False,
        help="use random weights and bloom_tiny's tokenizer in place of a checkpoint",
    )
    seed: int = field(default=0, help="seed of random weights")
    json: bool = field(default=False, help="print one JSON object")


@dataclass(frozen=True)
class Measured:
    """One way to ask. The rate is tokens of all clients by the time from first to last."""

    seconds: float
    tokens: int
    tokens_per_second: float
    first_token_median: float
    first_token_95th_percentile: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark's command line; status 1 where a text differs."""
    config, arguments = parse_arguments(
        argv, extra=ServingArguments, prog="serving.py", description=DESCRIPTION
    )
    config = for_many(config, sys.argv[1:] if argv is None else argv)
    setup_logging("warning")
    if arguments.clients < 1 or arguments.new_tokens < 2:
        raise UserError("clients must be 1 or more, and new_tokens 2 or more")
    loaded = made_up(config, arguments.seed) if arguments.random_weights else load(config)
    loaded.passes.warm_up(times=2)
    found = ask_both_ways(loaded, arguments)
    texts = [[answer["text"] for answer in way["answers"]] for way in found.values()]
    same = texts[0] == texts[1]
    results = {name: measured(**way) for name, way in found.items()}
    if arguments.json:
        objects = {name: dataclasses.asdict(result) for name, result in results.items()}
        print(json.dumps({**objects, "texts_are_the_same": same}, indent=2))
    else:
        print(describe(config, arguments, results, same))
    return 0 if same else 1


def made_up(config: BloomConfig, seed: int) -> LanguageModel:
    """A program of the configured shape with random weights."""
    session = build(config)
    fill_randomly(session, np.random.default_rng(seed))
    session.__enter__()
    folder = Path(load_config("bloom_tiny").model.hf_model)
    passes = Passes(config, session)
    return LanguageModel(passes, _Folded(load_tokenizer(folder)))


class _Folded:
    """A tokenizer whose tokens stand for all of a larger vocabulary, so that each has a text."""

    eos_token_id = -1  # none: every request runs to its last token

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self.backend_tokenizer = tokenizer.backend_tokenizer
        self.all_special_ids: list[int] = []

    def __call__(self, text: str, **options: Any) -> Any:
        return self._tokenizer(text, **options)

    def convert_ids_to_tokens(self, token: int) -> str:
        return self._tokenizer.convert_ids_to_tokens(token % len(self._tokenizer))


def ask_both_ways(loaded: LanguageModel, arguments: ServingArguments) -> dict[str, Any]:
    """What the process of the clients writes."""
    from utils.serving.web_server import serving  # late: gradio takes seconds

    prompts = [
        f"{BEGINNINGS[number % len(BEGINNINGS)]} {number}" for number in range(arguments.clients)
    ]
    with (
        Engine(loaded.passes, max_queue=arguments.clients) as engine,
        serving(Service(engine, loaded.tokenizer)) as address,
    ):
        task = {"address": address, "prompts": prompts, "new_tokens": arguments.new_tokens}
        done = subprocess.run(
            [sys.executable, str(CLIENTS)],
            input=json.dumps(task),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return json.loads(done.stdout)


def measured(seconds: float, answers: list[dict[str, Any]]) -> Measured:
    tokens = sum(answer["tokens"] for answer in answers)
    firsts = [answer["first"] for answer in answers]
    return Measured(
        seconds=seconds,
        tokens=tokens,
        tokens_per_second=tokens / seconds,
        first_token_median=float(np.median(firsts)),
        first_token_95th_percentile=float(np.percentile(firsts, 95)),
    )


def describe(
    config: BloomConfig, arguments: ServingArguments, results: dict[str, Measured], same: bool
) -> str:
    """A table for a person."""
    model, rows = config.model, config.execution.batch_size
    at_once, in_turn = results["at_once"], results["in_turn"]
    lines = [
        f"{model.layers} layers, hidden size {model.hidden_size}, vocabulary {model.vocab_size}, "
        f"{model.precision}, {rows} rows; {arguments.clients} clients x {arguments.new_tokens} "
        "tokens",
        f"{'':20}{'seconds':>10}{'tokens/s':>10}{'first token: median':>22}{'95th percentile':>18}",
    ]
    for name, found in ("all at once", at_once), ("one after another", in_turn):
        lines.append(
            f"{name:20}{found.seconds:10.2f}{found.tokens_per_second:10.1f}"
            f"{found.first_token_median:20.2f} s{found.first_token_95th_percentile:16.2f} s"
        )
    faster = at_once.tokens_per_second / in_turn.tokens_per_second
    lines.append(f"{faster:.2f} times the tokens/s")
    lines.append("every text is the same both times" if same else "TEXTS DIFFER")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
