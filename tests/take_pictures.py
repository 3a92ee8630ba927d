"""Take the README's picture of the page, and others to look at.

    python tests/take_pictures.py img
    python tests/take_pictures.py FOLDER --all

The page runs `bloom_tiny` and has finished a generation. `--all` adds the page at the width of a
phone and in dark mode.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import chromium  # noqa: E402 - found just above
from playwright.sync_api import Browser, expect  # noqa: E402

from config import load_config  # noqa: E402
from utils.generation.engine import Engine  # noqa: E402
from utils.generation.loading import load  # noqa: E402
from utils.serving.about import About  # noqa: E402
from utils.serving.service import Service  # noqa: E402
from utils.serving.web_server import serving  # noqa: E402

expect.set_options(timeout=60_000)

PROMPT = "The king said to his daughter:"
VIEWS: dict[str, dict[str, Any]] = {
    "gradio.png": {"viewport": {"width": 1280, "height": 800}},
    "gradio-phone.png": {
        "viewport": {"width": 390, "height": 844},
        "is_mobile": True,
        "has_touch": True,
    },
    "gradio-dark.png": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Take pictures of the page with bloom_tiny.")
    parser.add_argument("folder", type=Path, help="where to; it is made if need be")
    parser.add_argument("--all", action="store_true", help="also as on a phone and in dark mode")
    arguments = parser.parse_args()
    if chromium.path() is None:
        parser.error(chromium.MISSING)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    loaded = load(load_config("bloom_tiny"))
    loaded.passes.warm_up(times=2)
    with (
        Engine(loaded.passes) as engine,
        serving(Service(engine, loaded.tokenizer, about=About.of(loaded.config))) as address,
        chromium.launched() as browser,
    ):
        for name in VIEWS if arguments.all else ["gradio.png"]:
            take(browser, address, arguments.folder / name, VIEWS[name])


def take(browser: Browser, address: str, path: Path, view: dict[str, Any]) -> None:
    """A picture of the whole page after a generation, with the chart of the next tokens."""
    context = browser.new_context(**view)
    page = context.new_page()
    page.goto(address)
    page.locator("#prompt textarea").fill(PROMPT)
    for name, value in {"temperature": "0.7", "top_p": "0.9", "seed": "7"}.items():
        page.locator(f"#{name}").locator("input[type=number], textarea, input").first.fill(value)
    page.locator("#look").click()
    expect(page.locator("#next_tokens button")).to_have_count(10)
    page.locator("#generate").click()
    expect(page.locator("#status textarea")).to_have_value(re.compile("ended by"))
    page.locator("#generate").blur()
    page.screenshot(path=path, full_page=True)
    context.close()


if __name__ == "__main__":
    main()
