"""The documentation: the door stays short, links lead somewhere, commands exist."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import environment, run_python

from config import REPOSITORY, ExecutionConfig, ModelConfig
from config.config import setting_names
from config.presets import PRESETS_FILE, read_preset

MOST_WORDS = 1300
"""Of the README: what a newcomer reads in ten minutes, with the commands tried."""

HELP_SECONDS = 120
"""For a script's --help on a busy machine."""

PAGES = sorted(
    path
    for folder in ("", "docs", "runtime", "models/bloom_tiny")
    for path in (REPOSITORY / folder).glob("*.md")
)
USER_PAGES = [page for page in PAGES if page.name != "log.md"]
"""The log quotes commands as they were on their day."""


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def code(page: Path) -> Iterator[str]:
    """Each command-like text of a page: the lines of its code blocks, and its inline code."""
    text = page.read_text()
    for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield line.split(" #")[0]
    for inline in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        yield " ".join(inline.split())


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The scripts that a page runs, each with the words after it."""
    for line in code(page):
        for found in re.finditer(r"\b(?:python|torchrun\b.*?) (\S+\.py)\b([^;|>&]*)", line):
            if "-m " not in found[0]:
                yield found[1], found[2].split()


@functools.cache
def options_of(script: str) -> set[str]:
    """What a script of the README prints with `--help`; of others, to save time, all its words."""
    if script not in {script for script, _ in commands(REPOSITORY / "README.md")}:
        source = (REPOSITORY / script).read_text()
        if "ServerArguments" in source:
            source += (REPOSITORY / "utils" / "serving" / "arguments.py").read_text()
        settings = setting_names(ModelConfig) + setting_names(ExecutionConfig)
        named = settings if re.search(r"parse_(model_)?arguments", source) else []
        return {f"__{word}" for word in [*re.findall(r"\w+", source), *named]}
    wide = environment(COLUMNS="1000")
    done = run_python(script, "--help", env=wide, timeout=HELP_SECONDS, check=True)
    return set(re.findall(r"(?<!\w)__\w+", done.stdout.replace("-", "_")))


COMMANDS = [
    pytest.param(script, words, id=f"{name_of(page)}: {' '.join([script, *words])}")
    for page in USER_PAGES
    for script, words in dict.fromkeys((s, tuple(w)) for s, w in commands(page))
]


def test_the_readme_is_a_door():
    assert len((REPOSITORY / "README.md").read_text().split()) <= MOST_WORDS


def test_the_readme_runs_something_at_once():
    """An answer, a page and a run of 4 bits within the first 30 lines."""
    start = "\n".join((REPOSITORY / "README.md").read_text().splitlines()[:30])
    assert [
        w for w in ("make run", "make serve", "--weight_precision int4") if w not in start
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    local = [link.split("#")[0] for link in links if not re.match(r"\w+:|#", link)]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", USER_PAGES, ids=name_of)
def test_make_has_the_targets_that_are_named(page):
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    command = re.compile(r"(?:\$ )?make ([a-z]+)")
    named = {found[1] for line in code(page) if (found := command.match(line))}
    assert named <= targets


@pytest.mark.parametrize(("script", "words"), COMMANDS)
def test_commands_exist(script, words):
    """The script is there, it has the options, and its preset is one of ours."""
    assert (REPOSITORY / script).is_file()
    options = [word.split("=")[0].replace("-", "_") for word in words if word.startswith("--")]
    assert [option for option in options if option not in options_of(script)] == []
    if "--config" in words:
        read_preset(words[words.index("--config") + 1], PRESETS_FILE)
