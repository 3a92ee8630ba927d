"""Give the scripts and the page thousands of settings that nobody should give.

    python benchmarks/fuzz_settings.py --count 2000 --seed 0 --seconds 300

A third each: command lines, YAML files of presets, and values as the page sends them, which a text
in place of a model is then generated with. Right is a result, or one error of the kinds that the
person may cause, in one line; anything else is printed with the seed of its settings. The status is
1 if there was any.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import logging
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import orjson

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "runtime"), str(REPOSITORY / "tests")]

from byte_level import byte_level_tokenizer  # noqa: E402 - found just above
from serving import ScriptedPasses  # noqa: E402

import run_inference  # noqa: E402
import run_inference_gradio  # noqa: E402
from config import (  # noqa: E402
    ConfigError,
    ExecutionConfig,
    ModelConfig,
    load_config,
    parse_arguments,
)
from config.config import setting_names  # noqa: E402
from utils.generation.engine import Engine  # noqa: E402
from utils.generation.settings import settings_of  # noqa: E402
from utils.serving.arguments import ServerArguments  # noqa: E402
from utils.serving.page.handlers import Handlers, stop_strings  # noqa: E402
from utils.serving.service import Service  # noqa: E402
from utils.setup import UserError  # noqa: E402

CASE_SECONDS = 30
"""That settings may take until they are refused or used."""

LONGEST_LINE = 600
"""Characters of an error."""

SETTINGS = [*setting_names(ModelConfig), *setting_names(ExecutionConfig)]
OPTIONS = [
    *SETTINGS,
    *settings_of(),
    *("config", "config_file", "prompt", "no_stream", "json", "host", "port", "share", "auth"),
    *("proxy",),
    *("max_queue", "max_tokens", "time_limit", "log_prompts", "allow_host", "help", "unknown"),
]
WORDS = [
    *("", " ", "0", "1", "2", "-1", "7", "64", "1e3", "1e400", "-1e999", "nan", "inf", "-inf"),
    *("9" * 30, "9" * 5000, "0x10", "1_000", "٣", "½", "true", "no", "None", "null", "[]", "{}"),
    *("--", "-", "--x", "=", "a b", "é", "\x00", "\udcff", "\x1b[2J", "\n", "a\nb", "x" * 9000),
    *("float32", "int4", "cpu", "debug", "bloom_tiny", "/dev/null", "/", "..", "user:", ":", "a:b"),
    *("16 128", "128,16", "1e-400", "-0.0", "5e-324", "1e308"),
    *("[::1]", "0.0.0.0/0", "a/b", "[1, 2]"),
]
YAML = [
    *("", "[]", "1", "a", "null", "~", "true", "- 1", "{a: 1}", "? [1]\n: 2", "*a", "&a [*a]"),
    *("!!python/object/apply:os.system [x]", "!!binary x", "!!int x", "2001-99-99", "12:99:99"),
    *("1" * 5000, "0o99", "1e400", ".nan", ".inf", "[" * 3000, "{" * 3000, "a: " * 300, "\t", "@"),
    *("!!float x", "!!timestamp 1", "!!set {a}", "!!omap [a]", "<<: 5", "<<: [1]", "\ufeff", "%x"),
    *("'" + "x" * 9000 + "'", '"\\ud800"', '"\\x00"'),
    *("1: 2", "null: 1", "[1, [2, [3]]]", "--- 1\n--- 2"),
]
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 0.5, 64, 65, 1e308, -1e308, 5e-324, 1e-7, 2.5, 10**19),
    *(10**400, float("nan"), float("inf"), -float("inf"), 2**63, 2**64, 1e19, "", " ", "1", "-1"),
    *("--5", "-", "٣", "½", "1" * 30, "1" * 5000, "nan", "\ud800", "\x00", "x" * 9000, "0x1"),
    *([], {}, [[]], {"a": 1}, [""], ["a"], ["a", 1], ["\ud800"], ["x" * 9000], ["a"] * 9000),
    *([[["a"]]], [None], "a\nb", "\n" * 9000, "a\n" * 9000, {"path": "/etc/passwd"}, ["a", "a"]),
]  # fmt: skip

PLAIN = (0, 1, 2, 0.5, 1.0, 3, "1", ["a"], None)
"""Values that some setting may have."""


@dataclass
class Findings:
    """What came of it, and all that was wrong."""

    given: int = 0
    results: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0
    slowest_case: str = ""

    def summary(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(self.results.items()))
        slowest = f"slowest {self.slowest:.2f} s ({self.slowest_case})"
        return f"{self.given} settings, {slowest}, {len(self.wrong)} wrong\n{counts}"


class Hang(BaseException):
    """A case took too long. No library takes it for an error of its own."""


def command_line(choose: random.Random, folder: Path) -> None:
    """What a script does with its words before it loads a model."""
    words = []
    for _ in range(choose.choice((1, 1, 2, 4))):
        option, value = "--" + choose.choice(OPTIONS), choose.choice(WORDS)
        if choose.random() < 0.2:
            option = option.replace("_", "-")
        kind = choose.randrange(5)
        words += [[f"{option}={value}"], [option], [option, value], [option, *value.split()]][
            kind % 4
        ]
    if choose.random() < 0.5:
        parse_arguments(words, extra=run_inference.GenerationArguments)
        return
    config, served = parse_arguments(words, extra=ServerArguments)
    run_inference_gradio.for_many(config, words)
    served.account()
    if hasattr(served, "hosts"):
        served.hosts()


def yaml_file(choose: random.Random, folder: Path) -> None:
    """A file of presets, of which one part is something else."""
    part = choose.choice(YAML)
    indented = part.replace("\n", "\n    ")
    name = choose.choice(SETTINGS[6:])
    whole = "model:\n  hf_model: a\n  layers: 1\n  hidden_size: 8\n  heads: 2\n  vocab_size: 9\n"
    whole += "  sequence_length: 8\n"
    texts = [
        part,
        f"model: {part}\n",
        f"{part}: 1\n{whole}",
        f"{whole}execution: {part}\n",
        f"{whole}  {name}: {indented}\n",
        f"{whole}execution:\n  {name}: {indented}\n",
        f"{whole}  {part}: 1\n",
        f"{whole}execution: {{{name}: {choose.choice(PLAIN)}}}\n",
        f"a: {{model: {{hf_model: a, layers: {choose.choice(PLAIN)}, hidden_size: 8, heads: 2, "
        f"vocab_size: 9, sequence_length: 8}}}}\nb: {part}\n",
        f"a: &a {part}\n{whole}  <<: *a\n",
    ]
    text = choose.choice(texts)
    data = bytearray(text.encode(choose.choice(("utf-8", "utf-8", "utf-16")), "surrogatepass"))
    if choose.random() < 0.1 and data:
        data[choose.randrange(len(data))] = choose.randrange(256)
    file = folder / "presets.yml"
    file.write_bytes(data)
    load_config(choose.choice((None, None, "a", "b", "model")), file=file)


class Page:
    """The page's functions over an engine, with a text in place of a model."""

    def __init__(self) -> None:
        tokenizer = byte_level_tokenizer()
        self.engine = Engine(ScriptedPasses(tokenizer, "a cat ", sequence_length=64, endless=True))
        self.engine.start()
        self.handlers = Handlers(Service(self.engine, tokenizer))

    def values(self, choose: random.Random, folder: Path) -> None:
        """Generate with values as a browser sends them: an answer in words is right."""
        given: dict[str, Any] = {"num_tokens": 2}
        for name in choose.sample(list(settings_of()), choose.choice((1, 1, 2, 4))):
            given[name] = choose.choice(PLAIN if choose.random() < 0.4 else VALUES)
        prompts = (*["A"] * 20, "", None, "\ud800", "x" * 40000, ["A"], 7, "\x00", "🙂" * 9, True)
        asyncio.run(self._generate(choose.choice(prompts), given))

    async def _generate(self, prompt: Any, settings: dict[str, Any]) -> None:
        settings["stop"] = stop_strings(settings.get("stop"))
        async for progress in self.handlers.service.generate(prompt, settings):
            orjson.dumps(progress)


def fuzz(count: int, seed: int, seconds: float) -> Findings:
    """Give `count` settings, or as many as there is time for."""
    findings, end = Findings(), time.monotonic() + seconds
    page = Page()
    kinds: list[Callable[[random.Random, Path], None]] = [command_line, yaml_file, page.values]
    logging.disable(logging.CRITICAL)
    try:
        with tempfile.TemporaryDirectory() as name, _alarm():
            for number in range(count):
                if time.monotonic() > end:
                    break
                _try(findings, kinds[number % 3], f"{seed} {number}", Path(name))
    finally:
        logging.disable(logging.NOTSET)
        page.engine.close()
    return findings


def _try(
    findings: Findings, kind: Callable[[random.Random, Path], None], seed: str, folder: Path
) -> None:
    begin = time.perf_counter()
    said = io.StringIO()
    result = ""
    signal.alarm(CASE_SECONDS)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("error")
            kind(random.Random(seed), folder)
        result = "used"
    except (UserError, ConfigError) as error:
        result = "refused"
        message = str(error)
        if len(message) > LONGEST_LINE or "\n" in message or not message.isprintable():
            findings.wrong.append(f"{kind.__name__} {seed}: not one line: {message[:200]!r}")
    except SystemExit as error:
        result = "left"
        if error.code:
            findings.wrong.append(f"{kind.__name__} {seed}: status {error.code}: {said.getvalue()}")
    except (Exception, Hang) as error:
        result = "failed"
        cause = error.__cause__ or error
        findings.wrong.append(f"{kind.__name__} {seed}: {cause!r:.200}")
    finally:
        signal.alarm(0)
        warnings.resetwarnings()
    findings.given += 1
    findings.results[f"{kind.__name__} {result}"] += 1
    seconds = time.perf_counter() - begin
    if seconds > findings.slowest:
        findings.slowest, findings.slowest_case = seconds, f"{kind.__name__} {seed}"


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=300.0, help="at most")
    options = parser.parse_args()
    os.environ.pop("BLOOM_AUTH", None)
    findings = fuzz(options.count, options.seed, options.seconds)
    for line in findings.wrong:
        print(line.encode("utf-8", "backslashreplace").decode())
    print(findings.summary())
    return int(bool(findings.wrong))


if __name__ == "__main__":
    sys.exit(main())
