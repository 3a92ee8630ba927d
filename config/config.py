"""The settings of a run: what the model is, how it is executed, and which are possible.

Run directly, it prints the settings that a preset and the command line resolve to, as YAML that
``--config_file`` loads again:

    python config/config.py --config bloom_7B1 --layers 2
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from popxl_shared.limits import FEW_ROWS

REPOSITORY = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(REPOSITORY)  # instead of this folder, where `config` would be this file

from config.options import field  # noqa: E402 - found just above

if TYPE_CHECKING:
    from popxl import dtypes

PRECISIONS = ("float32", "float16", "bfloat16")
WEIGHT_PRECISIONS = ("full", "int8", "int4")
DEVICES = ("auto", "cpu", "cuda", "ipu_model", "ipu_hw")
LOG_LEVELS = ("debug", "info", "warning", "error")
MODEL_TYPES = sorted(p.parent.name for p in (REPOSITORY / "modelling").glob("*/__init__.py"))
"""Each is a folder with its builders."""

PARALLEL = "tensor parallelism: one model over several devices or processes"
IPU = "Graphcore IPU: no effect elsewhere"
LONGEST_ERROR = 500
"""Characters of an error about settings."""

MOST_LOOKUP_TOKENS = FEW_ROWS - 1
"""With the one before them they are as many rows as are still computed as one row is."""


class ConfigError(ValueError):
    """A setting that cannot be used: one line that names it, its value and what is allowed.

    What is in it from elsewhere cannot end the line, control a terminal, or fill a screen.
    """

    def __init__(self, message: str):
        super().__init__(_one_line(message))


def _one_line(text: str) -> str:
    """The text with escapes for what cannot be printed, and without most of a long middle."""
    if len(text) > LONGEST_ERROR:
        text = f"{text[: LONGEST_ERROR - 200]} … {text[-190:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass(frozen=True)
class ModelConfig:
    """What the model is."""

    hf_model: str = field(
        metavar="FOLDER|ID", help="checkpoint: a local folder, or an id of the Hugging Face hub"
    )
    layers: int = field(help="decoder blocks, 1 or more")
    hidden_size: int = field(
        help="width of the hidden states; a multiple of heads and of 2 * tensor_parallel_2"
    )
    heads: int = field(help="attention heads; a multiple of tensor_parallel_1")
    vocab_size: int = field(help="rows of the embedding, 1 or more")
    sequence_length: int = field(help="context in tokens, of prompt and generated text together")
    model_type: str = field(
        default="bloom",
        metavar="|".join(MODEL_TYPES),
        help="kind of model, as its config.json says",
    )
    layer_norm_epsilon: float = field(
        default=1e-5, help="number over 0 that layer norms add to the variance"
    )
    tie_word_embeddings: bool = field(
        default=True, help="compute logits with the embedding's weights; a checkpoint overrules it"
    )
    lora: tuple[str, ...] = field(
        default=(), help="LoRA adapters to merge in: folders, each FOLDER or FOLDER=WEIGHT"
    )
    residual_after_norm: bool = field(
        default=False, help="shortcuts begin behind a block's norms; a checkpoint decides"
    )
    precision: str = field(
        default="float32", metavar="|".join(PRECISIONS), help="type of weights and activations"
    )
    weight_precision: str = field(
        default="full",
        metavar="|".join(WEIGHT_PRECISIONS),
        help="quantise matrices to 8 or 4 bits; full keeps them in --precision",
    )
    group_size: int = field(
        default=64,
        help="elements of an int4 group, which have a scale and an offset: a multiple of 4 that "
        "divides hidden_size / tensor_parallel_1 and hidden_size / tensor_parallel_2",
    )

    @property
    def dtype(self) -> dtypes.dtype:
        """The PopXL type that `precision` names."""
        import popxl  # late, so that reading settings needs no runtime

        return getattr(popxl, self.precision)

    @property
    def quantized(self) -> bool:
        """Whether matrices are kept in fewer bits than activations have."""
        return self.weight_precision != "full"

    @property
    def precisions(self) -> str:
        """Those of arithmetic and, where they are others, weights, for a person."""
        if not self.quantized:
            return self.precision
        groups = f" in groups of {self.group_size}" if self.weight_precision == "int4" else ""
        return f"{self.precision} with {self.weight_precision} weights{groups}"

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads


@dataclass(frozen=True)
class ExecutionConfig:
    """How it is run."""

    device: str = field(
        default="auto", metavar="|".join(DEVICES), help="run here; auto takes a GPU if there is one"
    )
    batch_size: int = field(default=1, help="requests that run at once, 1 or more")
    memmap_dir: str | None = field(
        default=None,
        metavar="FOLDER",
        help="load memory maps, as generate_memmap.py makes them, in place of hf_model's weights",
    )
    verify_memmap: bool = field(
        default=False, help="compare memory maps with their checksums before the start"
    )
    prompt_chunks: tuple[int, ...] = field(
        default=(16, 128, 512),
        help="chunk sizes of the prefill in tokens, ascending; each is a pass that is compiled",
    )
    lookup_tokens: int = field(
        default=0,
        help="propose up to so many tokens from earlier in the text and verify them in one pass "
        f"(prompt-lookup decoding): 0 (off) to {MOST_LOOKUP_TOKENS}; faster where text repeats",
    )
    score_tokens: int = field(
        default=0,
        help="compile a pass that gives the log-likelihoods of a prompt's tokens, so many at "
        "once; 0 is none",
    )
    max_batch_tokens: int = field(
        default=512,
        help="tokens of prompts that a step runs at most: newcomers share a pass; fewer hold up "
        "those who decode for less long, more read prompts faster",
    )
    prefix_cache: int = field(
        default=512,
        metavar="MB",
        help="keep keys and values of prompts in at most so much memory, for requests that begin "
        "alike; 0 keeps none",
    )
    log_level: str = field(
        default="warning", metavar="|".join(LOG_LEVELS), help="show log lines from this level up"
    )
    tensor_parallel_1: int = field(
        default=1, help="shards of heads, feed-forward and vocabulary, 1 or more", group=PARALLEL
    )
    tensor_parallel_2: int = field(
        default=1, help="shards of the hidden dimension, 1 or more", group=PARALLEL
    )
    io_tiles: int = field(default=1, help="tiles kept for input and output, 1 or more", group=IPU)
    available_memory_proportion: float = field(
        default=0.4, help="share of memory that a matmul may use, over 0 to 1", group=IPU
    )

    @property
    def replicas(self) -> int:
        return self.tensor_parallel_1 * self.tensor_parallel_2


@dataclass(frozen=True)
class BloomConfig:
    """All settings of a run. Field names are unique over both sections."""

    model: ModelConfig
    execution: ExecutionConfig = dataclasses.field(default_factory=ExecutionConfig)

    @property
    def padded_vocab_size(self) -> int:
        """`vocab_size` rounded up to a multiple of `tensor_parallel_1`."""
        tp1 = self.execution.tensor_parallel_1
        return math.ceil(self.model.vocab_size / tp1) * tp1

    def changed(self, **settings: Any) -> BloomConfig:
        """With other values of these settings, whichever section they are of; not yet validated."""
        of_model = {n: settings.pop(n) for n in setting_names(ModelConfig) if n in settings}
        return BloomConfig(
            dataclasses.replace(self.model, **of_model),
            dataclasses.replace(self.execution, **settings),
        )

    def validate(self) -> BloomConfig:
        """This configuration itself, once every setting and combination is known to be possible.

        Raises:
            ConfigError: naming the first setting that is not, its value and what is allowed.
        """
        for section in (self.model, self.execution):
            for name, kind in get_type_hints(type(section)).items():
                _check_type(name, getattr(section, name), kind)
        _check_values(self.model, self.execution)
        _check_sharding(self.model, self.execution)
        _check_costs(self)
        return self


def setting_names(section: type) -> list[str]:
    """The names of a section's settings, in order."""
    return [field.name for field in dataclasses.fields(section)]


def _check_type(name: str, value: Any, kind: Any) -> None:
    kinds = {
        bool: ("true or false", lambda v: type(v) is bool),
        int: ("a whole number", lambda v: type(v) is int),
        float: ("a finite number", _is_finite),
        str: ("a text that is not empty", lambda v: isinstance(v, str) and v),
        str | None: ("a text or left out", lambda v: v is None or (isinstance(v, str) and v)),
        tuple[str, ...]: (
            "a list of texts that are not empty",
            lambda v: isinstance(v, tuple) and all(isinstance(s, str) and s for s in v),
        ),
        tuple[int, ...]: (
            "one or more whole numbers",
            lambda v: isinstance(v, tuple) and v and all(type(n) is int for n in v),
        ),
    }
    wanted, accepts = kinds[kind]
    if not accepts(value):
        raise ConfigError(f"{name} must be {wanted}, not {_shown(value)}")


def _is_finite(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # an integer beyond floats
        return False


def _check_values(model: ModelConfig, execution: ExecutionConfig) -> None:
    for name in ("layers", "hidden_size", "heads", "vocab_size", "sequence_length"):
        _check(getattr(model, name) >= 1, name, getattr(model, name), "1 or more")
    for name in ("tensor_parallel_1", "tensor_parallel_2", "batch_size", "io_tiles"):
        _check(getattr(execution, name) >= 1, name, getattr(execution, name), "1 or more")
    epsilon, share = model.layer_norm_epsilon, execution.available_memory_proportion
    _check(epsilon > 0, "layer_norm_epsilon", epsilon, "over 0")
    _check(0 < share <= 1, "available_memory_proportion", share, "over 0 and at most 1")
    _check(execution.prefix_cache >= 0, "prefix_cache", execution.prefix_cache, "0 or more")
    lookup = execution.lookup_tokens
    _check(
        0 <= lookup <= MOST_LOOKUP_TOKENS,
        "lookup_tokens",
        lookup,
        f"from 0 (off) to {MOST_LOOKUP_TOKENS}",
    )
    _check(execution.score_tokens >= 0, "score_tokens", execution.score_tokens, "0 or more")
    chunks = list(execution.prompt_chunks)
    ascending = chunks[0] >= 1 and all(a < b for a, b in zip(chunks, chunks[1:], strict=False))
    _check(ascending, "prompt_chunks", chunks, "numbers of 1 or more, each larger than the last")
    tokens, least = execution.max_batch_tokens, min(chunks[0], model.sequence_length)
    _check(tokens >= least, "max_batch_tokens", tokens, f"the smallest chunk, {least}, or more")
    _check_choice("model_type", model.model_type, MODEL_TYPES)
    _check_choice("precision", model.precision, PRECISIONS)
    _check_choice("weight_precision", model.weight_precision, WEIGHT_PRECISIONS)
    _check_choice("device", execution.device, DEVICES)
    _check_choice("log_level", execution.log_level, LOG_LEVELS)


def _check_sharding(model: ModelConfig, execution: ExecutionConfig) -> None:
    hidden, heads = model.hidden_size, model.heads
    tp1, tp2 = execution.tensor_parallel_1, execution.tensor_parallel_2
    _check(hidden % heads == 0, "hidden_size", hidden, f"a multiple of heads = {heads}")
    _check(heads % tp1 == 0, "heads", heads, f"a multiple of tensor_parallel_1 = {tp1}")
    _check(
        hidden % (2 * tp2) == 0,
        "hidden_size",
        hidden,
        f"a multiple of 2 * tensor_parallel_2 = {2 * tp2}",
    )
    _check(
        4 * hidden % tp1 == 0,
        "4 * hidden_size",
        4 * hidden,
        f"a multiple of tensor_parallel_1 = {tp1}",
    )
    if model.weight_precision == "int4":
        _check_groups(model.group_size, hidden, tp1, tp2)


def _check_groups(size: int, hidden: int, tp1: int, tp2: int) -> None:
    """Groups lie along the inputs of a shard, hidden_size over one axis or the other."""
    _check(size >= 4 and size % 4 == 0, "group_size", size, "a multiple of 4")
    for axis, parts in (("tensor_parallel_1", tp1), ("tensor_parallel_2", tp2)):
        width = f"hidden_size / {axis} = {hidden // parts}"
        _check((hidden // parts) % size == 0, "group_size", size, f"a divisor of {width}")


def _check_costs(config: BloomConfig) -> None:
    """What would take minutes or more to build, even for a plan."""
    from config import costs  # late: run directly, this file is `config` until its last lines

    for section in (config.model, config.execution):
        for name in setting_names(type(section)):
            most = costs.MOST.get(name)
            if most is not None:
                value = getattr(section, name)
                _check(value <= most, name, value, f"at most {most:,}")
    chunks, replicas = config.execution.prompt_chunks, config.execution.replicas
    few = f"at most {costs.MOST_CHUNKS} numbers"
    _check(len(chunks) <= costs.MOST_CHUNKS, "prompt_chunks", f"{len(chunks)} of them", few)
    product = "tensor_parallel_1 * tensor_parallel_2"
    _check(replicas <= costs.MOST_REPLICAS, product, replicas, f"at most {costs.MOST_REPLICAS:,}")
    size, most = costs.weight_bytes(config), costs.MOST_WEIGHT_BYTES
    if size > most:
        raise ConfigError(
            f"layers = {config.model.layers} and hidden_size = {config.model.hidden_size} make "
            f"{size / costs.GIGABYTE:,.0f} GB of weights, at most "
            f"{most / costs.GIGABYTE:,.0f} GB are possible"
        )


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    _check(value in choices, name, value, f"one of {', '.join(choices)}")


def _check(possible: bool, name: str, value: Any, allowed: str) -> None:
    if not possible:
        raise ConfigError(f"{name} must be {allowed}, not {_shown(value)}")


def _shown(value: Any) -> str:
    from utils.escaping import shown  # late: where this file is the script it is not yet found

    return shown(value)


if __name__ == "__main__":
    from config.arguments import print_config
    from utils import streams

    sys.exit(streams.guarded(print_config))
