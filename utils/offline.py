"""Prompts of a file, all slots busy, and a line of JSON for each, in order.

What is in the output file is whole lines, each of them safe on disk before the next is begun. So
the same command goes on after whatever ended it, and loses or repeats no line.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from tqdm import tqdm

from utils.generation.engine import Engine
from utils.generation.language_model import Generation, LanguageModel
from utils.generation.request import Request, encode_prompt
from utils.generation.settings import GenerationSettings, settings_of
from utils.generation.ticket import Ticket
from utils.outside import open_regular, parse_json
from utils.setup import UserError
from utils.writing import as_object

LONGEST_LINE = 1 << 24
"""Bytes that a line may have."""

AHEAD = 4
"""Times the slots: answers that wait for one before them, and requests that run, at most."""


@dataclass(frozen=True)
class Asked:
    """A prompt with its settings, and the number of its line, from 1."""

    line: int
    prompt: str
    settings: GenerationSettings


class Prompts:
    """The prompts of a file: each line is one, or in `.jsonl` an object with one and settings.

    Lines without text are passed over. With a seed on the command line each prompt has its own:
    that and its place.

    Args:
        settings: where a line does not say.

    Raises:
        UserError: the file cannot be read, or a line is not possible, with file and line. All lines
            are looked at.
    """

    def __init__(self, path: str, settings: GenerationSettings):
        self.path, self._settings = Path(path).expanduser(), settings
        self._objects = self.path.suffix in (".jsonl", ".ndjson")
        self.count = sum(1 for _ in self)
        if self.count == 0:
            raise UserError(f"{self.path} has no prompt")

    def __iter__(self) -> Iterator[Asked]:
        place = 0
        with open_regular(self.path, UserError) as file:
            for number, line in _lines(io.BufferedReader(cast(io.RawIOBase, file)), self.path):
                asked = self._asked(number, line, place)
                place += 1
                yield asked

    def _asked(self, number: int, line: str, place: int) -> Asked:
        settings = self._settings
        if settings.seed is not None:
            settings = replace(settings, seed=settings.seed + place)
        if not self._objects:
            return Asked(number, line, settings)
        where = f"{self.path}, line {number}"
        values = parse_json(line.encode(), Path(where), UserError)
        if not isinstance(values, dict) or not isinstance(values.get("prompt"), str):
            raise UserError(f"{where} must be an object with a text named prompt")
        prompt = values.pop("prompt")
        unknown = sorted(values.keys() - settings_of().keys())
        if unknown:
            known = ", ".join(settings_of())
            raise UserError(f"{where}: there is no setting {unknown[0]!r:.80}; there are {known}")
        try:
            return Asked(number, prompt, replace(settings, **_typed(values)))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None


def _typed(values: dict[str, Any]) -> dict[str, Any]:
    """Values of JSON as settings have them. Raises a `UserError` for one of a wrong type."""
    typed = dict(values)
    for name, value in values.items():
        found = settings_of()[name]
        if found.kind is tuple:
            texts = [value] if isinstance(value, str) else value
            good = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
            typed[name] = tuple(texts) if good else ()
        elif value is None:
            good = found.optional
        else:
            good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good:
            raise UserError(f"{name} must be {found.allowed}, not {value!r:.80}")
    return typed


class Answers:
    """The output file; as a context manager, open and for this process alone.

    Raises:
        UserError: it cannot be written, is of other prompts, or another process writes it.
    """

    def __init__(self, path: str, prompts: Prompts):
        self.path, self._prompts = Path(path).expanduser(), prompts

    def __enter__(self) -> Answers:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            self._file = os.fdopen(os.open(self.path, flags, 0o644), "r+b")
            if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                raise UserError(f"{self.path} is not a regular file")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process writes {self.path}") from None
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from None
        self.done = self._found()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def run(self, model: LanguageModel) -> str:
        """Continue all prompts that have no answer yet; a line on it.

        Raises:
            UserError: a prompt is not possible for this model, with file and line; those before it
                are answered.
        """
        engine = Engine(model.passes, max_queue=AHEAD * model.passes.batch_size, prefill_first=True)
        waiting: deque[_Waiting] = deque()
        rest = iter(self._prompts)
        for _ in range(self.done):
            next(rest)
        begun = self.done
        with tqdm(total=self._prompts.count, initial=begun, unit="prompt", disable=None) as bar:
            while waiting or self.done < self._prompts.count:
                while len(waiting) < AHEAD * model.passes.batch_size:
                    asked = next(rest, None)
                    if asked is None:
                        break
                    waiting.append(_Waiting.of(asked, model, engine, self._prompts.path))
                engine.step()
                for each in waiting:
                    each.take()
                while waiting and waiting[0].ended:
                    self._append(waiting.popleft().answer(self.done))
                    bar.update()
        kept = f", {begun} were there" if begun else ""
        return f"{self.done - begun} answers in {self.path}{kept}"

    def _append(self, answer: dict[str, Any]) -> None:
        self._file.write(json.dumps(answer, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done += 1

    def _found(self) -> int:
        """Answers that are there; a line that was cut off is removed."""
        prompts, whole, count = iter(self._prompts), 0, 0
        for line in iter(lambda: self._file.readline(LONGEST_LINE), b""):
            asked = next(prompts, None)
            if not line.endswith(b"\n"):
                break
            with contextlib.suppress(ValueError, RecursionError):
                found = json.loads(line)
                if asked and isinstance(found, dict) and found.get("prompt") == asked.prompt:
                    count, whole = count + 1, whole + len(line)
                    continue
            raise UserError(
                f"{self.path}, line {count + 1} is no answer to {self._prompts.path}: give another "
                "--output, or remove it"
            )
        self._file.seek(whole)
        self._file.truncate()
        return count


@dataclass
class _Waiting:
    """A prompt in the engine, and the steps that came of it."""

    asked: Asked
    ticket: Ticket
    steps: list[Any]
    ended: bool = False

    @classmethod
    def of(cls, asked: Asked, model: LanguageModel, engine: Engine, path: Path) -> _Waiting:
        asked = replace(asked, settings=asked.settings.seeded())
        settings = asked.settings
        try:
            ids = encode_prompt(model.tokenizer, asked.prompt, model.passes)
            request = Request(
                ids, model.tokenizer, settings, settings.num_tokens, settings.stop,
                sequence_length=model.passes.sequence_length,
            )  # fmt: skip
        except UserError as error:
            raise UserError(f"{path}, line {asked.line}: {error}") from None
        return cls(asked, engine.submit(request), [])

    def take(self) -> None:
        """Look for what came. Raises what ended the request, if that was an error."""
        end = self.ticket.end
        self.steps += self.ticket.take()
        if end is not None and end.error is not None:
            raise end.error
        self.ended = end is not None

    def answer(self, index: int) -> dict[str, Any]:
        found = as_object(self.asked.settings, self.asked.prompt, Generation.of(self.steps))
        return {"index": index, **found}


def _lines(file: io.BufferedReader, path: Path) -> Iterator[tuple[int, str]]:
    """Each line with text in it, without its end, and its number from 1."""
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
        if len(line) > LONGEST_LINE:
            raise UserError(f"{path}, line {number} has more than {LONGEST_LINE} bytes")
        try:
            text = line.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, line {number} is not UTF-8 at byte {error.start}") from None
        if text.strip():
            yield number, text
