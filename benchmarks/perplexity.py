"""Perplexity of a checkpoint on a text at each precision of arithmetic and of weights.

    python benchmarks/perplexity.py
    python benchmarks/perplexity.py --config bloom_560M --text book.txt --precisions bfloat16 int8

Each document stands on its own, after an end-of-text token, in pieces of the context's length; the
program is the model as one graph without a cache, which gives the logits of every position.
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
from simple_parsing import field

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import popxl  # noqa: E402
from popxl import ops  # noqa: E402
from tqdm import tqdm  # noqa: E402

from config import BloomConfig, ConfigError, parse_arguments  # noqa: E402 - found just above
from config.config import PRECISIONS  # noqa: E402
from modelling.bloom_lm import BloomLMHeadModelTP2D  # noqa: E402
from utils.checkpoints.checkpoint import Checkpoint, open_checkpoint  # noqa: E402
from utils.generation.tokenizer import load_tokenizer  # noqa: E402
from utils.setup import UserError, run_script, setup_logging  # noqa: E402

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
    json: bool = field(default=False, action="store_true", help="print one JSON object")


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
    config, arguments = parse_arguments(
        argv, extra=PerplexityArguments, prog="perplexity.py", description=DESCRIPTION
    )
    setup_logging(config.execution.log_level)
    configs = {name: with_precision(config, name) for name in arguments.precisions}
    checkpoint = open_checkpoint(config.model.hf_model, lora=config.model.lora)
    checkpoint.check_against(config)
    pieces = pieces_of(arguments.text, checkpoint, config.model.sequence_length)
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
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **change)).validate()


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
    config = checkpoint.decided(config)
    program = Program(config, max(map(len, pieces)) - 1)
    program.write(checkpoint)
    tokens = sum(len(piece) - 1 for piece in pieces)
    nats = 0.0
    with (
        program.session,
        tqdm(desc=name, total=tokens, unit="token", leave=False, disable=None) as bar,
    ):
        for piece in pieces:
            nats += program.loss(piece)
            bar.update(len(piece) - 1)
    return Result(name, program.session.ir.memory()[0], math.exp(nats / tokens))


class Program:
    """The model as one graph, from `length` tokens to the logits after each."""

    def __init__(self, config: BloomConfig, length: int):
        self.config, self.length = config, length
        ir = popxl.Ir(replication=config.execution.replicas)
        with ir.main_graph:
            self._stream = popxl.h2d_stream((length,), popxl.int32)
            tokens = ops.host_load(self._stream)
            factories, graph = BloomLMHeadModelTP2D(config).create_graph(tokens)
            self.variables = factories.init(empty=True)
            (logits,) = graph.bind(self.variables).call(tokens)
            self._out = popxl.d2h_stream(logits.shape, logits.dtype)
            ops.host_store(self._out, logits)
        self.session = popxl.Session(ir, config.execution.device)

    def write(self, checkpoint: Checkpoint) -> None:
        """Give it the checkpoint's weights."""
        module = checkpoint.module()
        self.session.write_variables_data(
            BloomLMHeadModelTP2D.hf_mapping(self.config, self.variables, module)
        )

    def loss(self, piece: list[int]) -> float:
        """Summed cross entropy of `piece[1:]`, each token given those before it, in nats."""
        wanted = np.array(piece[1:])
        logits = self._logits(piece[:-1])[: len(wanted)].astype(np.float64)
        highest = logits.max(-1)
        total = np.exp(logits - highest[:, np.newaxis]).sum(-1)
        return float((np.log(total) + highest - logits[np.arange(len(wanted)), wanted]).sum())

    def _logits(self, tokens: list[int]) -> np.ndarray:
        """float32 `(length, vocab_size)`; those after the tokens given mean nothing."""
        replicas = self.config.execution.replicas
        ids = np.zeros(self.length, np.int32)
        ids[: len(tokens)] = tokens
        given = ids if replicas == 1 else np.broadcast_to(ids, (replicas, self.length))
        found = self.session.run({self._stream: given})[self._out].reshape(
            replicas, self.length, -1
        )
        parts = found[:: self.config.execution.tensor_parallel_2]
        return np.concatenate(list(parts), -1)[:, : self.config.model.vocab_size]


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
