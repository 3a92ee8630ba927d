"""Builds the text that bloom_tiny is trained on, out of freely licensed Debian packages.

`python models/corpus.py` downloads the packages into data/ (nothing is installed), turns them
into prose and writes data/corpus/train.txt and data/corpus/heldout.txt. A part of the held-out
text, from sources that may be passed on with a notice, goes to models/bloom_tiny/heldout.txt.
"""

import argparse
import hashlib
import random
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
# The corpus holds each source so often: WordNet in other words, the rest as it is.
ROUNDS = 2
PACKAGES = [
    "wordnet-base",
    "bible-kjv",
    "bible-kjv-text",
    "r-cran-janeaustenr",
    "endless-sky-data",
    "gnome-user-docs",
    "python3.11-doc",
    "wesnoth-1.16-data",
    "wesnoth-1.16-did",
    "wesnoth-1.16-dm",
    "wesnoth-1.16-dw",
    "wesnoth-1.16-ei",
    "wesnoth-1.16-httt",
    "wesnoth-1.16-l",
    "wesnoth-1.16-low",
    "wesnoth-1.16-nr",
    "wesnoth-1.16-sof",
    "wesnoth-1.16-sota",
    "wesnoth-1.16-sotbe",
    "wesnoth-1.16-thot",
    "wesnoth-1.16-trow",
    "wesnoth-1.16-tsg",
    "wesnoth-1.16-ttb",
    "wesnoth-1.16-utbs",
]
# Characters taken of a source at the most, so that technical prose does not dominate.
LIMITS = {"python": 2_500_000}
# Characters of the held-out text that ships, a source.
SHIPPED = ROOT / "models" / "bloom_tiny" / "heldout.txt"
SHIPPED_SOURCES = {"wordnet": 60_000, "austen": 25_000, "bible": 25_000, "python": 15_000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder for packages and corpus")
    arguments = parser.parse_args()
    packages = fetch(arguments.data)
    build(packages, arguments.data / "corpus")


def fetch(data: Path) -> Path:
    """Downloads and unpacks what is missing of `PACKAGES`; returns the folder of packages."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise SystemExit("apt-get and dpkg-deb are needed: run this on Debian or a system like it.")
    debs, packages = data / "debs", data / "packages"
    for folder in (debs, packages):
        folder.mkdir(parents=True, exist_ok=True)
    for name in tqdm(PACKAGES, desc="packages", unit="package"):
        if (packages / name).is_dir():
            continue
        if not list(debs.glob(f"{name}_*.deb")):
            subprocess.run(["apt-get", "-qq", "download", name], cwd=debs, check=True)
        unpack(next(debs.glob(f"{name}_*.deb")), packages / name)
    return packages


def unpack(deb: Path, folder: Path) -> None:
    """The package's files in `folder`, which has its name only when it is whole."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    subprocess.run(["dpkg-deb", "-x", str(deb), str(partial)], check=True)
    partial.rename(folder)


def build(packages: Path, folder: Path) -> None:
    """Writes train.txt and heldout.txt into `folder`, and `SHIPPED`; `END` ends a document."""
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = [], []
    for seed in range(ROUNDS):
        for name, text in tqdm(documents(packages, seed), desc="documents", unit="document"):
            if len(text) < SHORTEST:
                continue
            if not is_held_out(name):
                train.append((name, text))
            elif seed == 0:
                held_out.append((name, text))
    random.Random(0).shuffle(train)
    write(folder / "train.txt", train)
    write(folder / "heldout.txt", held_out)
    write(SHIPPED, shipped(held_out))
    for label, chosen in (("train", train), ("held out", held_out)):
        print(label, sizes(chosen))


def documents(packages: Path, seed: int) -> Iterator[tuple[str, str]]:
    """Every document of every source, within `LIMITS`; WordNet worded as `seed` draws."""
    sources = [
        wordnet_documents(packages / "wordnet-base/usr/share/wordnet", seed),
        package_text.bible(packages),
        package_text.novels(packages),
        package_text.wesnoth(packages),
        package_text.endless_sky(packages),
        package_text.gnome_help(packages),
        package_text.python_docs(packages),
    ]
    for source in sources:
        taken = 0
        for name, text in source:
            taken += len(text)
            if taken > LIMITS.get(source_of(name), taken):
                break
            yield name, text


def source_of(name: str) -> str:
    return name.split("/")[0]


def is_held_out(name: str) -> bool:
    """Whether a document is kept from training: it depends on its name alone."""
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
