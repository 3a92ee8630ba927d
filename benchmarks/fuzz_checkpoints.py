"""Random small checkpoints: the logits and greedy tokens of transformers, or one line.

    python benchmarks/fuzz_checkpoints.py --count 2000 --seed 0 --seconds 1500

Each is drawn by `checkpoint_cases.py` and run as `--hf_model FOLDER` is, in some precision and
sharding. Of those that are whole every one must run; of damaged ones each must be refused by one
line, or give what transformers gives with the settings in its config.json and the weights that its
tensors mean. Anything else is printed with the number of the case, which `--only` runs again.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "runtime")]

import numpy as np  # noqa: E402 - found just above
import torch  # noqa: E402
from checkpoint_cases import (  # noqa: E402
    Case,
    damage_config,
    damage_files,
    damage_form,
    damage_tensors,
    make,
    write,
)
from transformers import BloomConfig as TransformersConfig  # noqa: E402
from transformers import BloomForCausalLM  # noqa: E402

from config import BloomConfig, ConfigError  # noqa: E402
from utils.checkpoints.arguments import parse_model_arguments  # noqa: E402
from utils.checkpoints.checkpoint import open_checkpoint  # noqa: E402
from utils.generation.loading import build, write_weights  # noqa: E402
from utils.generation.passes import Passes  # noqa: E402
from utils.setup import UserError  # noqa: E402

NEW_TOKENS = 3
DAMAGED = 0.45
CASE_SECONDS = 60
LONGEST_LINE = 600
NEAR = {"float32": 1e-3, "float16": 0.03, "bfloat16": 0.25}
"""How far logits may be off, of the largest one."""

CLEAR = 2e-3
"""Of the largest logit: what the likeliest token must be ahead by to be compared in float32."""


IGNORED = ("quantization_config", "dtype", "torch_dtype", "hidden_dropout", "slow_but_exact")
IGNORED += ("pretraining_tp", "bos_token_id", "eos_token_id", "model_type")
"""Settings that change no logits, or not those of the weights that are meant."""

EPSILON = "layer_norm_epsilon"


@dataclass
class Findings:
    """What came of the cases, and what should not have come."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def summary(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(self.outcomes.items()))
        total = sum(self.outcomes.values())
        return f"{total} checkpoints in {self.seconds:.0f} s, {len(self.wrong)} wrong: {counts}"


class Hang(BaseException):
    """A case took too long; no library takes it for an error of its own."""


def fuzz(numbers: range, seconds: float) -> Findings:
    """Try the cases of these numbers, as many as there is time for."""
    findings, begin = Findings(), time.monotonic()
    before = signal.signal(signal.SIGALRM, _ring)
    logging.disable(logging.CRITICAL)
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for number in numbers:
                if time.monotonic() - begin > seconds:
                    break
                _try(findings, number, Path(folder) / str(number))
    finally:
        logging.disable(logging.NOTSET)
        signal.signal(signal.SIGALRM, before)
    findings.seconds = time.monotonic() - begin
    return findings


def _ring(number: int, frame: FrameType | None) -> None:
    raise Hang


def _try(findings: Findings, number: int, folder: Path) -> None:
    case, damaged, outcome, wrong = make(number), False, "", ""
    signal.alarm(CASE_SECONDS)
    try:
        path, damaged = _written(case, folder)
        outcome, wrong = _outcome(case, path, damaged)
    except (Exception, Hang) as error:
        outcome, wrong = "failed", f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.alarm(0)
        shutil.rmtree(folder, ignore_errors=True)
    findings.outcomes[f"{'damaged' if damaged else 'whole'} {outcome}"] += 1
    if wrong:
        findings.wrong.append(f"case {number} ({'; '.join(case.told)}): {wrong}")


def _written(case: Case, folder: Path) -> tuple[Path, bool]:
    """The checkpoint on disk, and whether something is wrong with it."""
    damaged = case.draw.random() < DAMAGED
    what = case.draw.choice([damage_tensors, damage_config, damage_form, damage_files])
    if damaged and case.form == "gguf":
        what = damage_files
    if damaged and what is not damage_files:
        what(case)
    path = write(case, folder)
    if damaged and what is damage_files:
        damage_files(case, path)
    return path, damaged


def _outcome(case: Case, path: Path, damaged: bool) -> tuple[str, str]:
    """Used or refused, and what is wrong with that; '' if nothing."""
    try:
        config, tokens, logits = _ours(case, path)
    except (UserError, ConfigError) as error:
        text = str(error)
        table = "is not the model that is configured" in text
        if not damaged:
            return "refused", f"a whole checkpoint is refused: {text[:300]}"
        if len(text) > LONGEST_LINE or (not text.isprintable() and not table):
            return "refused", f"not one line: {text[:200]!r}"
        return "refused", ""
    try:
        wanted = _theirs(case, path, tokens)
    except Exception as error:  # whatever transformers trips over
        return "used", f"used, where transformers fails: {type(error).__name__}: {error}"[:300]
    return "used", _difference(logits, wanted, config)


def _ours(case: Case, path: Path) -> tuple[BloomConfig, list[int], list[np.ndarray]]:
    """Settings, the tokens that were run, and the logits after the prompt and each new token."""
    words = ["--hf_model", str(path), "--sequence_length", "16", "--prompt_chunks", "4"]
    precision = case.draw.choice(["float32"] * 5 + [None])
    words += ["--precision", precision] if precision else []
    tp1, tp2 = case.draw.choice([("1", "1")] * 5 + [("2", "1"), ("1", "2"), ("2", "2")])
    if len(case.meant["ln_f.weight"]) % 4 == 0 and _even_heads(case):
        words += ["--tensor_parallel_1", tp1, "--tensor_parallel_2", tp2]
    words += ["--lora", str(path / "adapter")] if case.adapter else []
    case.told.append(" ".join(words[4:]))
    config, _ = parse_model_arguments([*words, "--device", "cpu"])
    checkpoint = open_checkpoint(config.model.hf_model, lora=config.model.lora)
    checkpoint.check_against(config)
    config = checkpoint.decided(config)
    session = build(config)
    write_weights(config, session, checkpoint)
    tokens = case.rng.integers(0, config.model.vocab_size, 6).tolist()
    with session:
        passes = Passes(config, session)
        logits = [passes.prefill(0, tokens)]
        for _ in range(NEW_TOKENS):
            tokens.append(int(logits[-1].argmax()))
            last, place = ([np.int32(tokens[-1])], [np.int32(len(tokens) - 1)])
            logits.append(passes.decode(np.array(last), np.array(place))[0])
    return config, tokens, logits


def _even_heads(case: Case) -> bool:
    names = ("n_head", "num_attention_heads")
    heads = next((case.config[n] for n in names if n in case.config), 1)
    return type(heads) is int and heads % 2 == 0


def _theirs(case: Case, path: Path, tokens: list[int]) -> list[np.ndarray]:
    """transformers' logits at the same places, in float32 with the weights that are meant."""
    said = json.loads((path / "config.json").read_text()) if path.is_dir() else case.config
    # Null is as if left out here, and a whole number is a number; transformers refuses both.
    taken = {n: float(v) if n == EPSILON and type(v) is int else v for n, v in said.items()}
    config = TransformersConfig(
        **{n: v for n, v in taken.items() if n not in IGNORED and v is not None}
    )
    model = BloomForCausalLM(config).eval()
    # Not the head: where the configuration ties it, it would overwrite the embedding.
    state = {f"transformer.{n}": t for n, t in case.meant.items() if not n.startswith("lm_head")}
    found = model.load_state_dict(state, strict=False)
    left = [name for name in found.missing_keys if not name.startswith("lm_head")]
    if left:
        raise ValueError(f"it lacks {left[:3]}")
    head = case.meant.get("lm_head.weight", case.meant["word_embeddings.weight"])
    with torch.no_grad():
        states = model.transformer(torch.tensor([tokens])).last_hidden_state[0]
        every = (states @ head.T).numpy()
    return list(every[len(tokens) - NEW_TOKENS - 1 :])


def _difference(found: list[np.ndarray], wanted: list[np.ndarray], config: BloomConfig) -> str:
    precision = config.model.precision
    for place, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        size = float(np.abs(theirs).max())
        off = float(np.abs(ours - theirs).max()) / size
        if not off <= NEAR[precision]:
            return f"logits of pass {place} are off by {off:.2g} of the largest ({precision})"
        first, second = np.sort(theirs)[-1], np.sort(theirs)[-2]
        clear = (first - second) / size > CLEAR
        if precision == "float32" and clear and ours.argmax() != theirs.argmax():
            return f"pass {place} chooses {ours.argmax()}, transformers {theirs.argmax()}"
    return ""


def main() -> int:
    parser: Any = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first case, / 1,000,000")
    parser.add_argument("--seconds", type=float, default=1500.0, help="at most")
    parser.add_argument("--only", type=int, help="run this case alone")
    given = parser.parse_args()
    first = given.seed * 1_000_000
    numbers = range(first, first + given.count)
    if given.only is not None:
        numbers = range(given.only, given.only + 1)
    findings = fuzz(numbers, given.seconds)
    for line in findings.wrong:
        print(line.encode("utf-8", "backslashreplace").decode())
    print(findings.summary())
    return int(bool(findings.wrong))


if __name__ == "__main__":
    sys.exit(main())
