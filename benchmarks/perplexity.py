"""Perplexity of a checkpoint on a text at each precision of arithmetic and of weights.

    python benchmarks/perplexity.py
    python benchmarks/perplexity.py --config bloom_560M --text book.txt --precisions bfloat16 int8

Each document stands on its own, after an end-of-text token, in pieces of the context's length. A
piece is read by verify passes, which give the logits after every token.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from popxl_torch.analysis.cost import memory_of  # noqa: E402
from tqdm import tqdm  # noqa: E402

from config import BloomConfig, ConfigError  # noqa: E402 - found just above
from config.config import MOST_LOOKUP_TOKENS, PRECISIONS  # noqa: E402
from config.options import field  # noqa: E402
from modelling.program import inference  # noqa: E402
from utils.checkpoints.arguments import parse_model_arguments  # noqa: E402
from utils.checkpoints.checkpoint import Checkpoint, open_checkpoint  # noqa: E402
from utils.generation.loading import write_weights  # noqa: E402
from utils.generation.passes import Passes  # noqa: E402
from utils.generation.tokenizer import load_tokenizer  # noqa: E402
from utils.setup import UserError, run_script, setup_logging  # noqa: E402

WIDTH = MOST_LOOKUP_TOKENS + 1
"""Tokens of the widest verify pass."""

HELD_OUT = ROOT / "models" / "bloom_tiny" / "heldout.txt"
DESCRIPTION = (
    "Perplexity of a checkpoint on held-out text at each precision, as a table, beside the first."
)


@dataclass
class PerplexityArguments:
    """What to compare, and on which text."""

    text: list[str] = field(
        default_factory=lambda: [str(HELD_OUT)],
        metavar="FILE",
        help="UTF-8 text; documents in it end with the tokenizer's end-of-text token and a newline",
    )
    precisions: list[str] = field(
        default_factory=lambda: (
            ["float32", "bfloat16", "float16", "int8"] + [f"int4:{size}" for size in (32, 64, 128)]
        ),
        metavar="PRECISION",
        help=f"{', '.join(PRECISIONS)} for all; or int8, int4 or int4:GROUP_SIZE for the weights, "
        "with --precision for the rest",
    )
    json: bool = field(default=False, help="print one JSON object")


@dataclass(frozen=True)
class Result:
    """Of one precision.

    Attributes:
        weight_bytes: of all weights.
        change: of the perplexity against the first precision's, as a share.
    """

    precision: str
    weight_bytes: int
    perplexity: float
    change: float = 0.0


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    config, arguments = parse_model_arguments(
        argv, extra=PerplexityArguments, prog="perplexity.py", description=DESCRIPTION
    )
    setup_logging(config.execution.log_level)
    configs = {name: with_precision(config, name) for name in arguments.precisions}
    checkpoint = open_checkpoint(config.model.hf_model, lora=config.model.lora)
    checkpoint.check_against(config)
    length = config.model.sequence_length
    if length < WIDTH:
        raise ConfigError(f"sequence_length must be at least {WIDTH}, not {length}")
    pieces = pieces_of(arguments.text, checkpoint, length // WIDTH * WIDTH)
    results = compared(configs, checkpoint, pieces)
    tokens = sum(len(piece) - 1 for piece in pieces)
    if arguments.json:
        print(as_json(tokens, list(results)))
    else:
        for line in table(tokens, arguments.precisions[0], results):
            print(line, flush=True)


def compared(
    configs: dict[str, BloomConfig], checkpoint: Checkpoint, pieces: list[list[int]]
) -> Iterator[Result]:
    """The result of each precision, beside the first."""
    first = None
    for name, config in configs.items():
        result = measure(name, config, checkpoint, pieces)
        first = first or result.perplexity
        yield dataclasses.replace(result, change=result.perplexity / first - 1)


def with_precision(config: BloomConfig, name: str) -> BloomConfig:
    """The settings changed to a precision as the command line names it.

    Raises:
        ConfigError: where there is no such precision, or it is not possible.
    """
    kind, _, size = name.partition(":")
    change: dict[str, Any] = {"weight_precision": kind}
    if kind in PRECISIONS:
        change = {"precision": kind, "weight_precision": "full"}
    elif kind not in ("int8", "int4") or (size and not (kind == "int4" and size.isdecimal())):
        known = f"{', '.join(PRECISIONS)}, int8, int4 or int4:GROUP_SIZE"
        raise ConfigError(f"precisions must be of {known}, not {name!r}")
    if size:
        change["group_size"] = int(size)
    return config.changed(**change).validate()


def pieces_of(files: Sequence[str], checkpoint: Checkpoint, length: int) -> list[list[int]]:
    """Token ids to read, up to `length` at once, and the one after them to predict."""
    tokenizer = load_tokenizer(checkpoint.path)
    end = tokenizer.eos_token
    pieces: list[list[int]] = []
    for file in files:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {file}: {error}") from None
        for document in filter(None, text.split(f"{end}\n")):
            ids = [tokenizer.eos_token_id, *tokenizer(document + end).input_ids]
            pieces += [ids[at : at + length + 1] for at in range(0, len(ids) - 1, length)]
    if not pieces:
        raise UserError(f"there is no text in {', '.join(files)}")
    return pieces


def measure(
    name: str, config: BloomConfig, checkpoint: Checkpoint, pieces: list[list[int]]
) -> Result:
    """The perplexity at one precision."""
    config = checkpoint.decided(config).changed(
        batch_size=1, prompt_chunks=(1,), lookup_tokens=MOST_LOOKUP_TOKENS
    )
    session = inference(config)
    write_weights(config, session, checkpoint)
    tokens = sum(len(piece) - 1 for piece in pieces)
    nats = 0.0
    with session, tqdm(desc=name, total=tokens, unit="token", leave=False, disable=None) as bar:
        passes = Passes(config, session)
        for piece in pieces:
            nats += loss(passes, piece)
            bar.update(len(piece) - 1)
    return Result(name, memory_of(session.ir)[0], math.exp(nats / tokens))


def loss(passes: Passes, piece: list[int]) -> float:
    """Summed cross entropy of `piece[1:]`, each token given those before it, in nats."""
    given, wanted = piece[:-1], np.array(piece[1:])
    logits = np.concatenate(
        [passes.verify(0, given[at : at + WIDTH], at) for at in range(0, len(given), WIDTH)]
    ).astype(np.float64)
    highest = logits.max(-1)
    total = np.exp(logits - highest[:, np.newaxis]).sum(-1)
    return float((np.log(total) + highest - logits[np.arange(len(wanted)), wanted]).sum())


def table(tokens: int, first: str, results: Iterable[Result]) -> Iterator[str]:
    """The lines of the results in Markdown, each as it comes."""
    yield f"| precision | weights | perplexity a token ({tokens:,}) | against {first} |"
    yield "|---|---|---|---|"
    for r in results:
        yield (
            f"| {r.precision} | {r.weight_bytes / 1e6:,.1f} MB | {r.perplexity:.3f} "
            f"| {100 * r.change:+.2f} % |"
        )


def as_json(tokens: int, results: list[Result]) -> str:
    """The results as a JSON object."""
    return json.dumps({"tokens": tokens, "results": list(map(dataclasses.asdict, results))})


if __name__ == "__main__":
    run_script(main)
