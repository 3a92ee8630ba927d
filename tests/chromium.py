"""Headless Chromium for tests of the page and its pictures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

MISSING = "the page is shown in a browser, which is missing: apt-get install -y chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def path() -> str | None:
    """Of the browser; None where there is none."""
    return shutil.which("chromium")


@contextmanager
def launched(*flags: str) -> Iterator[Browser]:
    """The browser, headless, with further flags, until the end of the block.

    Raises:
        FileNotFoundError: there is none.
        playwright.sync_api.Error: it does not start.
    """
    if path() is None:
        raise FileNotFoundError(MISSING)
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path(), args=[*FLAGS, *flags])
