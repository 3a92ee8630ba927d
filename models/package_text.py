"""Prose out of Debian packages: one function a source, each yields (document name, text)."""

import html
import re
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

Documents = Iterator[tuple[str, str]]
PARAGRAPHS_A_DOCUMENT = 40


def bible(packages: Path) -> Documents:
    """The King James Bible, a document a chapter (the package's own reader decompresses it)."""
    program = packages / "bible-kjv/usr/bin/bible"
    folder = packages / "bible-kjv-text/usr/lib"
    reach = "gen1:1-rev22:21"
    command = [str(program.resolve()), "-p", str(folder.resolve()), "-l100000", reach]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parts = re.split(r"^(\S.* \d+)\n", text, flags=re.MULTILINE)
    for chapter, verses in zip(parts[1::2], parts[2::2], strict=True):
        lines = [re.sub(r"^\d+ ", "", plain(verse)) for verse in verses.splitlines()]
        yield f"bible/{chapter}", "\n".join(line for line in lines if line)


def novels(packages: Path) -> Documents:
    """Jane Austen's six novels, which an R package carries as data."""
    library = packages / "r-cran-janeaustenr/usr/lib/R/site-library"
    database = (library / "janeaustenr/data/Rdata.rdb").read_bytes()
    for number, lines in enumerate(r_strings(database)):
        yield from in_documents(f"austen/{number}", unwrap("\n".join(lines)))


def r_strings(database: bytes) -> Iterator[list[str]]:
    """The longest character vector of each entry of an R lazy-load database.

    An entry is its length in four bytes, then zlib data.
    """
    start = 0
    while start < len(database):
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(database[start + 4 :])
        start = len(database) - len(unpacker.unused_data)
        vector = re.compile(rb"\x00\x00\x00\x10(?=....\x00.\x00\x09)", re.DOTALL)
        found = [r_character_vector(data, match.end()) for match in vector.finditer(data)]
        if found:
            yield max(found, key=lambda strings: sum(map(len, strings)))


def r_character_vector(data: bytes, at: int) -> list[str]:
    """A serialised STRSXP: a count, then (flags, length, bytes) for each string, big-endian."""
    count, strings = int.from_bytes(data[at : at + 4], "big"), []
    at += 4
    for _ in range(count):
        length = int.from_bytes(data[at + 4 : at + 8], "big", signed=True)
        strings.append(data[at + 8 : at + 8 + max(length, 0)].decode("utf-8", "replace"))
        at += 8 + max(length, 0)
    return strings


def wesnoth(packages: Path) -> Documents:
    """The campaigns' dialogue and narration, a document a scenario."""
    spoken = re.compile(r'\b(?:message|story|description|text)\s*=\s*_\s*"((?:[^"]|"")*)"')
    for path in sorted(packages.glob("wesnoth-1.16-*/usr/share/games/wesnoth/1.16/data/**/*.cfg")):
        found = spoken.findall(path.read_text(encoding="utf-8", errors="replace"))
        lines = [plain(re.sub(r"<[^>]*>", "", line.replace('""', '"'))) for line in found]
        lines = [
            line for line in lines if len(line.split()) > 4 and "$" not in line and "|" not in line
        ]
        if lines:
            yield f"wesnoth/{path.stem}", "\n".join(dict.fromkeys(lines))


def endless_sky(packages: Path) -> Documents:
    """Conversations of the game Endless Sky, a document a mission."""
    for path in sorted(packages.glob("endless-sky-data/usr/share/games/endless-sky/data/**/*.txt")):
        text = path.read_text(encoding="utf-8", errors="replace")
        for number, block in enumerate(re.split(r"^(?=\S)", text, flags=re.MULTILINE)):
            lines = [plain(line) for line in re.findall(r"`([^`]+)`", block)]
            lines = [line for line in lines if len(line.split()) > 3 and "<" not in line]
            if len(lines) > 1:
                yield f"endless-sky/{path.stem}/{number}", "\n".join(lines)


def gnome_help(packages: Path) -> Documents:
    """GNOME's desktop help, a document a page."""
    for path in sorted(packages.glob("gnome-user-docs/usr/share/help/C/*/*.page")):
        page = path.read_text(encoding="utf-8")
        page = re.sub(r"<(info|comment|code|screen|media)\b.*?</\1>", "", page, flags=re.DOTALL)
        blocks = re.findall(r"<(?:title|p)\b[^>]*>(.*?)</(?:title|p)>", page, flags=re.DOTALL)
        lines = [plain(html.unescape(re.sub(r"<[^>]*>", "", block))) for block in blocks]
        if len(lines) > 2:
            yield f"gnome/{path.stem}", "\n".join(line for line in lines if line)


def python_docs(packages: Path) -> Documents:
    """The explanatory parts of Python's documentation, without code and markup."""
    root = packages / "python3.11-doc/usr/share/doc/python3.11/html/_sources"
    for folder in ("tutorial", "howto", "faq", "using", "reference", "whatsnew", "library"):
        for path in sorted((root / folder).glob("*.txt")):
            paragraphs = rst_paragraphs(path.read_text(encoding="utf-8"))
            yield from in_documents(f"python/{folder}/{path.name.split('.')[0]}", paragraphs)


def rst_paragraphs(text: str) -> list[str]:
    """Paragraphs of prose in reStructuredText: no directive, code, table, list of names."""
    paragraphs = []
    for block in re.split(r"\n\s*\n", text):
        if re.match(r"\s*(\.\.|>>>|[=~*\-+|:#^]{3}|:\w+:|\|)", block) or re.match(r"\s{5,}", block):
            continue
        block = re.sub(r"^[=~*\-\"'^.#]{3,}$", "", block, flags=re.MULTILINE)
        block = re.sub(r":[\w:+-]+:`[!~]?([^`<]*?)(?:\s*<[^`]*>)?`", r"\1", block)
        block = re.sub(r"`([^`<]+?)\s*(?:<[^`]*>)?`_*", r"\1", block).replace("``", "")
        block = re.sub(r"\*{1,2}([^*\n]+)\*{1,2}", r"\1", block)
        line = plain(re.sub(r"^\s*[*#-]\.? ", "", block)).replace("::", ":")
        if len(line.split()) > 7 and line[-1] in ".:!?" and "``" not in line:
            paragraphs.append(line)
    return paragraphs


def in_documents(name: str, paragraphs: list[str]) -> Documents:
    """A long text in documents of a few pages, so that a part of it can be held out."""
    for start in range(0, len(paragraphs), PARAGRAPHS_A_DOCUMENT):
        yield f"{name}/{start}", "\n".join(paragraphs[start : start + PARAGRAPHS_A_DOCUMENT])


def unwrap(text: str) -> list[str]:
    """Paragraphs of a hard-wrapped text, one line each."""
    paragraphs = (plain(block.replace("_", "")) for block in re.split(r"\n\s*\n", text))
    return [paragraph for paragraph in paragraphs if paragraph]


def plain(text: str) -> str:
    """The text on one line, with keyboard quotation marks."""
    for curly, straight in (("“", '"'), ("”", '"'), ("’", "'"), ("‘", "'"), ("…", "...")):
        text = text.replace(curly, straight)
    return " ".join(text.split())
