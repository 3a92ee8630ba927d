"""Damaged and hostile files, drawn at random, given to everything that reads files.

    python tests/fuzz_files.py --cases 2000 --seed 1 --seconds 1200

A case is a folder that is whole but for a few changes: settings, a tokenizer, the index of shards,
safetensors, `.bin`, a manifest, maps, presets, an entry of the cache. It must be used or refused by
an error of one line. Anything else is printed: a traceback, a hang, a crash, output, code that ran.
The same seed gives the same cases; each is run again by `--only NUMBER`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / part) for part in ("", "runtime", "tests", "runtime/tests")]

LIMIT = 20
"""Seconds that a case may take; it is ended by its own process, or by this one twice as late."""

MEMORY = 12 << 30
"""Bytes of addresses that a process may have."""

LONGEST_LINE = 2000
CANARY = "code-has-run"
ESCAPE = "\x1b]0;owned\x07"


class HangError(BaseException):
    """A case has taken too long."""


@dataclass
class Report:
    """What came of the cases.

    Attributes:
        outcomes: how many of each kind: used, refused, or what should not be.
        findings: what should not be, with the number of the case.
    """

    outcomes: Counter = field(default_factory=Counter)
    findings: list[dict[str, Any]] = field(default_factory=list)


# --- the case: what is drawn ---


class Nasty:
    """Values, texts and changes of files, drawn from one generator."""

    def __init__(self, draw: random.Random):
        self.draw = draw

    def text(self) -> str:
        return self.draw.choice(
            ["", ".", "..", "../x", "/etc/passwd", "a\0b", "a" * 300, "a" * 5000, "\ud800x", ESCAPE]
            + [
                "one\ntwo",
                "\u202eabc",
                "naïve 🐕",
                "__reduce__",
                "NaN",
                "-1",
                "null",
                "h.0",
                "%s{}",
            ]
        )

    def value(self, deep: int = 2) -> Any:
        kinds: list[Callable[[], Any]] = [
            lambda: self.draw.choice([0, 1, -1, 2, 3, 255, 2**31, 2**63, -(2**63), 2**64, 10**30]),
            lambda: self.draw.choice([0.0, -0.5, 1e-5, 1e308, -1e-320, 1.5]),
            lambda: self.draw.choice([None, True, False]),
            lambda: self.draw.choice([10**400, float("inf"), float("nan"), -(10**90)]),
            self.text,
            self.text,
            lambda: {"content": self.value(0)},
            lambda: [self.value(deep - 1) for _ in range(self.draw.randrange(4))],
            lambda: {self.text(): self.value(deep - 1) for _ in range(self.draw.randrange(3))},
        ]
        return self.draw.choice(kinds if deep > 0 else kinds[:6])()

    def json(self, text: str) -> str:
        """A JSON text with some of its values, names or characters changed."""
        try:
            found = json.loads(text)
        except ValueError:
            return self.characters(text)
        for _ in range(self.draw.randint(1, 3)):
            found = self._changed(found)
        return json.dumps(found).replace("Infinity", self.draw.choice(["Infinity", "1e999"]))

    def _changed(self, found: Any) -> Any:
        """One change, at a place that is drawn on the way down."""
        if not isinstance(found, dict | list) or not found or self.draw.random() < 0.04:
            return self.value()
        key = self.draw.choice(list(found) if isinstance(found, dict) else range(len(found)))
        what = self.draw.random()
        if what < 0.1:
            del found[key]
        elif what < 0.2 and isinstance(found, dict):
            found[self.text()] = found.pop(key)
        elif what < 0.3 and isinstance(found, dict):
            found[self.text()] = self.value()
        else:
            found[key] = self._changed(found[key])
        return found

    def characters(self, text: str) -> str:
        at = self.draw.randrange(len(text) + 1)
        put = self.draw.choice(
            ["[", "{", '"', "\0", "\ud800", "&a [*a]", ": ", "\t", "-", self.text()]
        )
        return text[:at] + put * self.draw.choice([1, 1, 3, 200]) + text[at:]

    def bytes(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self.draw.randint(1, 4)):
            at = self.draw.randrange(len(changed) + 1) if changed else 0
            what = self.draw.randrange(5)
            if what == 0 and changed:
                changed[min(at, len(changed) - 1)] ^= 1 << self.draw.randrange(8)
            elif what == 1:
                del changed[at:]
            elif what == 2:
                del changed[at : at + self.draw.choice([1, 8, 100])]
            elif what == 3:
                changed[at:at] = self.draw.randbytes(self.draw.choice([1, 8, 300]))
            else:
                changed[:8] = self.draw.choice(
                    [b"\xff" * 8, bytes(8), (2**40).to_bytes(8, "little")]
                )
        return bytes(changed)

    def kind(self, path: Path) -> str:
        """Put something that is no file in its place, or a bomb; what."""
        path.unlink(missing_ok=True)
        what = self.draw.choice(
            ["pipe", "zero", "folder", "dangling", "loop", "socket", "sparse", "brackets", "empty"]
            + ["numbers", "utf-16", "missing", "quoted"]
        )
        if what == "pipe":
            os.mkfifo(path)
        elif what == "zero":
            path.symlink_to("/dev/zero")
        elif what == "folder":
            path.mkdir()
        elif what == "dangling":
            path.symlink_to(path.with_name("nowhere"))
        elif what == "loop":
            path.symlink_to(path)
        elif what == "socket":
            with socket.socket(socket.AF_UNIX) as listener, contextlib.suppress(OSError):
                listener.bind(str(path))
        elif what == "sparse":
            path.touch()
            os.truncate(path, 1 << 40)
        elif what == "brackets":
            path.write_text("[" * 100_000 if self.draw.random() < 0.5 else '{"a":' * 100_000)
        elif what == "empty":
            path.touch()
        elif what == "numbers":
            path.write_text("9" * self.draw.choice([400, 5000, 100_000]))
        elif what == "utf-16":
            path.write_text('{"a": 1}', encoding="utf-16")
        elif what == "quoted":
            path.write_text(json.dumps("x" * 3_000_000))
        return what

    def file(self, path: Path) -> str:
        """Change a file in one way or another; how."""
        what = self.draw.random()
        if what < 0.2:
            return self.kind(path)
        if what < 0.4 or path.suffix not in (".json", ".yml"):
            path.write_bytes(self.bytes(path.read_bytes()))
            return "bytes"
        change = self.json if what < 0.9 and path.suffix == ".json" else self.characters
        text = path.read_text(encoding="utf-8", errors="replace")
        path.write_text(change(text), encoding="utf-8", errors="surrogatepass")
        return change.__name__


class Payload:
    """What would leave a mark if it were unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.canary),)


# --- what reads files ---


class Bench:
    """Whole folders of each kind, and what reads them. It takes seconds to set up."""

    def __init__(self, folder: Path):
        import torch
        from memmap_checkpoints import Small
        from popxl_torch import cache

        from utils.generation.loading import build

        self.torch, self.cache, self.folder = torch, cache, folder
        self.small = Small.save(folder / "shards", layers=2)
        self.config = self.small.config(None)
        self.single = folder / "single"
        Small.save(self.single, layers=2, shard="1GB")
        self.pickled = folder / "pickled"
        shutil.copytree(self.single, self.pickled)
        (self.pickled / "model.safetensors").unlink()
        self.tensors = dict(self.small.model.state_dict())
        torch.save(self.tensors, self.pickled / "pytorch_model.bin")
        with contextlib.redirect_stdout(None):
            self.maps = self.small.generate(folder / "maps")
        self.session = build(self.config)
        self.targets: dict[str, Callable[[Path, Nasty], Iterator[str]]] = {
            "config": self.of_config,
            "tokenizer": self.of_tokenizer,
            "index": self.of_index,
            "safetensors": self.of_safetensors,
            "header": self.of_header,
            "bin": self.of_bin,
            "tensors": self.of_tensors,
            "manifest": self.of_manifest,
            "notes": self.of_notes,
            "part": self.of_part,
            "presets": self.of_presets,
            "cache": self.of_cache,
        }

    def run(self, target: str, place: Path, nasty: Nasty) -> Iterator[str]:
        """Make the case in an empty folder and read it; what was changed."""
        return self.targets[target](place, nasty)

    def _read(self, place: Path) -> None:
        from utils.checkpoints.checkpoint import open_checkpoint
        from utils.checkpoints.memmap.fingerprint import fingerprint
        from utils.generation.loading import write_weights

        checkpoint = open_checkpoint(place)
        checkpoint.check_against(self.config)
        fingerprint(checkpoint)
        if checkpoint.tied:
            write_weights(self.config, self.session, checkpoint)

    def of_config(self, place: Path, nasty: Nasty) -> Iterator[str]:
        shutil.copytree(self.single, place, dirs_exist_ok=True)
        yield nasty.file(place / "config.json")
        self._read(place)

    def of_tokenizer(self, place: Path, nasty: Nasty) -> Iterator[str]:
        from utils.generation.text import TextStream
        from utils.generation.tokenizer import load_tokenizer

        shutil.copytree(self.single, place, dirs_exist_ok=True)
        (place / "evil.py").write_text(f"import os; os.mkdir({str(place / CANARY)!r})\n")
        settings = json.loads((place / "tokenizer_config.json").read_text())
        code = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
        more = nasty.draw.choice([{}, {}, {}, code, {"vocab_file": "/dev/zero"}])
        (place / "tokenizer_config.json").write_text(json.dumps(settings | more))
        if nasty.draw.random() < 0.3:
            token = {"eos_token": nasty.value()}
            (place / "special_tokens_map.json").write_text(json.dumps(token))
        name = nasty.draw.choice(["tokenizer.json", "tokenizer_config.json"])
        yield f"{more} {name} {nasty.file(place / name)}"
        tokenizer = load_tokenizer(place)
        stream = TextStream(tokenizer)
        for token in tokenizer("A dog — 東京").input_ids:
            stream.push(token)
        assert isinstance(tokenizer.eos_token_id, int | None)

    def of_index(self, place: Path, nasty: Nasty) -> Iterator[str]:
        shutil.copytree(self.small.folder, place, dirs_exist_ok=True)
        yield nasty.file(place / "model.safetensors.index.json")
        self._read(place)

    def of_safetensors(self, place: Path, nasty: Nasty) -> Iterator[str]:
        shutil.copytree(self.single, place, dirs_exist_ok=True)
        yield nasty.file(place / "model.safetensors")
        self._read(place)

    def of_header(self, place: Path, nasty: Nasty) -> Iterator[str]:
        shutil.copytree(self.single, place, dirs_exist_ok=True)
        _change_header(place / "model.safetensors", nasty)
        yield "header"
        self._read(place)

    def of_bin(self, place: Path, nasty: Nasty) -> Iterator[str]:
        shutil.copytree(self.pickled, place, dirs_exist_ok=True)
        path = place / "pytorch_model.bin"
        if nasty.draw.random() < 0.3:
            yield nasty.kind(path)
        else:
            yield f"member {_change_member(path, nasty)}"
        self._read(place)

    def of_tensors(self, place: Path, nasty: Nasty) -> Iterator[str]:
        shutil.copytree(self.pickled, place, dirs_exist_ok=True)
        tensors = dict(self.tensors)
        name = nasty.draw.choice(list(tensors))
        kinds = _odd_values(self.torch, tensors[name], place / CANARY)
        kind = nasty.draw.choice([*kinds, "name", "number", "whole"])
        if kind == "name":
            tensors[nasty.text()] = tensors.pop(name)
        elif kind == "number":
            tensors[nasty.draw.choice([7, None, ("a",), b"x", 1.5])] = tensors[name]
        elif kind == "whole":
            tensors = nasty.draw.choice([[], tensors[name], {"state_dict": tensors}, nasty.value()])
        else:
            tensors[name] = kinds[kind]()
        legacy = nasty.draw.random() < 0.2
        path = place / "pytorch_model.bin"
        self.torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)
        yield f"{name} {kind}"
        self._read(place)

    def of_manifest(self, place: Path, nasty: Nasty) -> Iterator[str]:
        shutil.copytree(self.maps, place, dirs_exist_ok=True)
        yield nasty.file(place / "manifest.json")
        self._open_maps(place)

    def of_part(self, place: Path, nasty: Nasty) -> Iterator[str]:
        from utils.checkpoints.memmap.tensor_file import map_tensors

        shutil.copytree(self.maps, place, dirs_exist_ok=True)
        path = place / "layer_0000.safetensors"
        if nasty.draw.random() < 0.5:
            _change_header(path, nasty)
            yield "header"
        else:
            yield nasty.file(path)
        map_tensors(path)
        self._open_maps(place)

    def _open_maps(self, place: Path) -> None:
        import dataclasses

        from utils.checkpoints.memmap.reader import MemoryMaps
        from utils.checkpoints.memmap.verification import verify

        execution = dataclasses.replace(self.config.execution, memmap_dir=str(place))
        maps = MemoryMaps(dataclasses.replace(self.config, execution=execution))
        maps.write(self.session)
        verify(place)

    def of_notes(self, place: Path, nasty: Nasty) -> Iterator[str]:
        from utils.checkpoints.memmap.folder import MapFolder
        from utils.checkpoints.memmap.manifest import read_manifest

        shutil.copytree(self.maps, place, dirs_exist_ok=True)
        wanted = read_manifest(place / "manifest.json")
        notes = place / ".generation"
        notes.mkdir()
        shutil.copy(place / "manifest.json", notes / "job.json")
        first = next(iter(wanted.files))
        note = notes / f"{first}.json"
        note.write_text(
            json.dumps(json.loads((place / "manifest.json").read_text())["files"][first])
        )
        changed = nasty.draw.choice([note, notes / "job.json", place / "manifest.json"])
        if nasty.draw.random() < 0.5:
            (place / "manifest.json").unlink()
            changed = nasty.draw.choice([note, notes / "job.json"])
        yield f"{changed.name} {nasty.file(changed)}"
        folder = MapFolder(place, list(wanted.files), wanted)
        folder.begin(nasty.draw.random() < 0.5, lambda names, size: None)
        folder.finish()

    def of_presets(self, place: Path, nasty: Nasty) -> Iterator[str]:
        from config import load_config
        from utils.planning.machines import load_machine

        path = place / "presets.yml"
        which = nasty.draw.choice(["inference.yml", "machines.yml"])
        text = (REPOSITORY / "config" / which).read_text()
        path.write_text(text)
        if nasty.draw.random() < 0.3:
            path.write_text(_yaml_bomb(nasty.draw))
            yield f"{which} bomb"
        else:
            yield f"{which} {nasty.file(path)}"
        if which == "machines.yml":
            load_machine(nasty.draw.choice(["bow_pod16", "h200_x1", "bomb"]), path)
        else:
            load_config(nasty.draw.choice([None, "bloom_560M", "bomb"]), file=path)

    def of_cache(self, place: Path, nasty: Nasty) -> Iterator[str]:
        root = place / "cache"
        os.environ[self.cache.CACHE_DIR] = str(root)
        content = nasty.draw.randbytes(100)

        def make(folder: Path) -> None:
            (folder / "file").write_bytes(content)

        self.cache.entry("fuzz", {"a": "b"}, make)
        entry = next(path for path in root.iterdir() if path.is_dir())
        yield _change_entry(root, entry, nasty)
        found = self.cache.entry("fuzz", {"a": "b"}, make)
        assert found is not None
        assert (Path(found) / "file").read_bytes() == content, "what is not ours was used"
        assert _is_private(Path(found)), "what is not this user's alone was used"


def _change_entry(root: Path, entry: Path, nasty: Nasty) -> str:
    file, what = entry / "file", nasty.draw.randrange(9)
    if what == 0:
        return f"manifest {nasty.file(entry / 'entry.json')}"
    if what == 1:
        return f"file {nasty.file(file)}"
    if what == 2:
        place = nasty.draw.choice([root, entry, file, entry / "entry.json"])
        place.chmod(nasty.draw.choice([0o777, 0o1777, 0o770, 0o666]))
        return f"mode of {place.name}"
    if what == 3 and os.geteuid() == 0:
        place = nasty.draw.choice([root, entry, file, entry / "entry.json"])
        os.chown(place, 12345, 12345)
        return f"owner of {place.name}"
    if what == 4:
        shutil.rmtree(entry)
        return f"entry {nasty.kind(entry)}"
    if what == 5:
        shutil.rmtree(root)
        return f"root {nasty.kind(root)}"
    if what == 6:
        (entry / nasty.draw.choice(["more", ESCAPE, "a" * 200])).write_bytes(b"more")
        return "more files"
    if what == 7:
        shutil.move(entry, root.with_name("moved"))
        entry.symlink_to(root.with_name("moved"))
        return "entry is a link"
    lock = entry.with_name(entry.name + ".lock")
    shutil.rmtree(entry)
    return f"lock {nasty.kind(lock)}"


def _is_private(place: Path) -> bool:
    found = [place.stat(), *(path.lstat() for path in place.rglob("*"))]
    return all(s.st_uid == os.geteuid() and not s.st_mode & 0o022 for s in found)


def _change_header(path: Path, nasty: Nasty) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = nasty.json(data[8 : 8 + length].decode()).encode("utf-8", "surrogatepass")
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


def _change_member(path: Path, nasty: Nasty) -> str:
    """Change the bytes of one member of a zip file, whose checksums then fit."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in members if name.endswith("data.pkl"))
    name = pickled if nasty.draw.random() < 0.8 else nasty.draw.choice(list(members))
    members[name] = nasty.bytes(members[name])
    compression = nasty.draw.choice([zipfile.ZIP_STORED] * 4 + [zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(path, "w", compression) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return name


def _odd_values(torch: Any, tensor: Any, canary: Path) -> dict[str, Callable[[], Any]]:
    """What may stand in a tensor's place in a `.bin`."""
    flat = tensor.reshape(-1)
    return {
        "sparse": lambda: flat.to_sparse(),
        "csr": lambda: flat.reshape(1, -1).to_sparse_csr(),
        "meta": lambda: tensor.to("meta"),
        "quantised": lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
        "complex": lambda: tensor.to(torch.complex64),
        "expanded": lambda: torch.zeros(1).expand(1 << 40),
        "bool": lambda: tensor > 0,
        "float64": lambda: tensor.double(),
        "int64": lambda: tensor.long(),
        "float8": lambda: tensor.to(torch.float8_e4m3fn),
        "empty": lambda: tensor[:0],
        "scalar": lambda: flat[0],
        "transposed": lambda: tensor.reshape(tensor.shape[0], -1).T,
        "half": lambda: flat[: len(flat) // 2],
        "not finite": lambda: tensor * float("nan"),
        "list": lambda: tensor.reshape(-1)[:5].tolist(),
        "text": lambda: ESCAPE,
        "code": lambda: Payload(canary),
        "parameter": lambda: torch.nn.Parameter(tensor.clone()),
    }


def _yaml_bomb(draw: random.Random) -> str:
    what = draw.randrange(5)
    if what == 0:
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
        return "\n".join([*lines, "bomb: {model: *a11}"])
    if what == 1:
        lines = ["a0: &a0 {x: 1, y: 2}"]
        merges = [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12)]
        return "\n".join([*lines, *merges, "bomb: {model: *a11}"])
    if what == 2:
        return "bomb: &a {model: *a}"
    if what == 3:
        return "bomb: " + draw.choice(["[", "{a: ", "- "]) * 50_000
    return f"bomb: {{model: {draw.choice(['!!python/object/apply:os.mkdir [x]', '!!int x'])}}}"


# --- running them ---


def work(seed: int, numbers: list[int], root: Path) -> Iterator[dict[str, Any]]:
    """Run cases in this process; what came of each."""
    from config import ConfigError
    from utils.setup import UserError

    logging.basicConfig(level=logging.CRITICAL, force=True)
    _limit_memory()
    bench = Bench(root / "whole")
    told: list[str] = []
    sys.addaudithook(lambda event, arguments: _audit(event, arguments, told))
    signal.signal(signal.SIGALRM, _too_long)
    names = list(bench.targets)
    for number in numbers:
        draw = random.Random(f"{seed} {number}")
        target = names[number % len(names)]
        place = root / f"case{number}"
        place.mkdir()
        case: dict[str, Any] = {"number": number, "target": target, "outcome": "used"}
        yield {"begin": number, "target": target}
        told.clear()
        signal.setitimer(signal.ITIMER_REAL, LIMIT)
        begin = time.monotonic()
        try:
            with _watched(told):
                for change in bench.run(target, place, Nasty(draw)):
                    case["change"] = change
        except (UserError, ConfigError) as error:
            case |= _refused(str(error), place, target)
        except HangError:
            case |= {"outcome": "hang", "text": traceback.format_exc()[-1500:]}
        except BaseException:
            case |= {"outcome": "traceback", "text": traceback.format_exc()[-3000:]}
        signal.setitimer(signal.ITIMER_REAL, 0)
        if told or any(root.rglob(CANARY)):
            case |= {"outcome": "code or output", "text": "; ".join(told)[:2000]}
        case["seconds"] = round(time.monotonic() - begin, 2)
        shutil.rmtree(place, ignore_errors=True)
        yield case


def _refused(message: str, place: Path, target: str) -> dict[str, Any]:
    from utils.writing import for_terminal

    printed = for_terminal(message)
    table = "is not the model that is configured" in message
    wrong = []
    if "\n" in printed and not table:
        wrong.append("more than a line")
    if len(printed) > LONGEST_LINE:
        wrong.append(f"{len(printed)} characters")
    if place.name not in printed and target != "presets":  # a value is named by its setting
        wrong.append("names no file")
    if wrong:
        return {"outcome": "not a line", "text": f"{', '.join(wrong)}: {printed[:1500]}"}
    return {"outcome": "refused", "text": printed}


WATCHED = (
    "os.system",
    "subprocess.Popen",
    "builtins.input",
    "os.exec",
    "os.posix_spawn",
    "pty.spawn",
)


def _audit(event: str, arguments: tuple, told: list[str]) -> None:
    if event in WATCHED or (event == "exec" and CANARY in repr(arguments)):
        told.append(f"{event} {arguments!r}"[:500])


@contextlib.contextmanager
def _watched(told: list[str]) -> Iterator[None]:
    """Inside, nothing is to be written to stdout, and no panic or traceback to stderr."""
    sys.stdout.flush()
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        os.dup2(output.fileno(), 1)
        os.dup2(errors.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)
            for descriptor in kept:
                os.close(descriptor)
            output.seek(0)
            errors.seek(0)
            if written := output.read(500):
                told.append(f"stdout {written!r}")
            written = errors.read(5000)
            if b"panicked" in written or b"Traceback" in written or b"\x1b" in written:
                told.append(f"stderr {written!r}")


def _too_long(*_: object) -> None:
    raise HangError


def _limit_memory() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def run(cases: int, seed: int, seconds: float, processes: int = 1, first: int = 0) -> Report:
    """Run cases in processes of their own; one that dies or hangs is replaced."""
    report, end = Report(), time.monotonic() + seconds
    numbers = list(range(first, first + cases))
    running = [_Worker(seed, numbers[i::processes]) for i in range(processes)]
    while running:
        for worker in list(running):
            if not worker.advance(report, end):
                running.remove(worker)
    return report


class _Worker:
    """A process that works through numbers of cases."""

    def __init__(self, seed: int, numbers: list[int]):
        self.seed, self.numbers = seed, numbers
        self.root = tempfile.mkdtemp(prefix="fuzz-files-")
        self._start()

    def _start(self) -> None:
        words = ["--worker", self.root, "--seed", str(self.seed), "--numbers"]
        self.process = subprocess.Popen(
            [sys.executable, __file__, *words, ",".join(map(str, self.numbers))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        self.buffer, self.begun, self.since = b"", None, time.monotonic()

    def advance(self, report: Report, end: float) -> bool:
        """Take what it says; whether there is more to come."""
        if time.monotonic() > end:
            return self._stop()
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], 0.2)
        data = os.read(self.process.stdout.fileno(), 1 << 16) if ready else None
        if data:
            *lines, self.buffer = (self.buffer + data).split(b"\n")
            for line in lines:
                self._take(json.loads(line), report)
            self.since = time.monotonic()
        ended = data == b""
        slow = time.monotonic() - self.since > (2 * LIMIT if self.begun else 10 * LIMIT)
        if not (ended or slow):
            return True
        return self._replace(report, "hang" if slow else "crash")

    def _take(self, told: dict[str, Any], report: Report) -> None:
        if "begin" in told:
            self.begun = told
            return
        self.begun = None
        self.numbers.remove(told["number"])
        report.outcomes[told["outcome"]] += 1
        if told["outcome"] not in ("used", "refused"):
            report.findings.append(told)

    def _replace(self, report: Report, outcome: str) -> bool:
        self.process.kill()
        _, errors = self.process.communicate()
        if not self.numbers:
            return self._stop()
        number = self.begun["begin"] if self.begun else self.numbers[0]
        text = errors.decode(errors="replace")[-2000:]
        self._take({"number": number, "outcome": outcome, "text": text}, report)
        shutil.rmtree(self.root, ignore_errors=True)
        os.mkdir(self.root)
        self._start()
        return True

    def _stop(self) -> bool:
        self.process.kill()
        self.process.communicate()
        shutil.rmtree(self.root, ignore_errors=True)
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1200, help="no case is begun after that")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", type=int, help="the number of one case")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--numbers", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        numbers = [int(number) for number in arguments.numbers.split(",") if number]
        for told in work(arguments.seed, numbers, Path(arguments.worker)):
            print(json.dumps(told), flush=True)
        return 0
    cases, first = (arguments.cases, 0) if arguments.only is None else (1, arguments.only)
    report = run(cases, arguments.seed, arguments.seconds, arguments.processes, first)
    for finding in report.findings:
        print(json.dumps(finding, indent=1))
    print(f"{sum(report.outcomes.values())} cases: {dict(report.outcomes)}")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
