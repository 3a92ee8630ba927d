"""The page in a real browser, headless Chromium, driven by Playwright."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import chromium
import httpx
import pytest
import torch
from playwright.sync_api import Browser, Locator, Page, expect
from serving import (
    HeldPasses,
    ReferencePasses,
    ScriptedPasses,
    Served,
    advance_until,
    generated_text,
    served,
    wait_until,
)
from transformers import BloomForCausalLM, PreTrainedTokenizerFast

from utils.generation.settings import settings_of
from utils.serving.page import words

PROMPT = "A dog is"
STORY = 9 * "a friend, and a cat\n  is a cat. Où est le garçon ? 犬は動物です。\n\n"
EVIL = (
    "<script>window.evil = 1</script><img src=x onerror='window.evil = 2'></div></span> **b** "
    "[l](//l.l) $x$ ${window.evil = 3} {{value}} @children &lt; \\n `"
)

WAIT = 60_000
"""Milliseconds that a browser has for what it is asked, beside other workers on two cores."""

expect.set_options(timeout=WAIT)
pytestmark = pytest.mark.timeout(240)


if chromium.path() is None:
    pytest.fail(chromium.MISSING, pytrace=False)  # once, and not for each test


@pytest.fixture(scope="module")
def site(model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Iterator[Served]:
    """A random model of transformers' behind the page, with two rows and a context of 64."""
    with served(ReferencePasses(model, batch_size=2), tokenizer) as site:
        yield site


@pytest.fixture(scope="module")
def browser(site: Served) -> Iterator[Browser]:
    """One whose tabs share a process, which keeps the page's compiled scripts while one is open."""
    with chromium.launched("--process-per-site") as browser, browser.new_context() as context:
        context.new_page().goto(site.url)
        yield browser


@pytest.fixture(scope="module")
def held_up(tokenizer: PreTrainedTokenizerFast) -> Iterator[Served]:
    with served(HeldPasses(ScriptedPasses(tokenizer, STORY, batch_size=2)), tokenizer) as site:
        yield site


@pytest.fixture
def story(held_up: Served) -> Iterator[Served]:
    """A page that continues every prompt with STORY, a pass at a time if wanted."""
    yield held_up
    held_up.passes.let_all()
    wait_until(lambda: held_up.running() == 0)


@contextmanager
def tab(browser: Browser, site: Served, **settings: Any) -> Iterator[Page]:
    """A page; a script that fails, or says something, fails the test.

    One with settings has a browser of its own; others share what they have fetched and compiled.
    """
    wrong: list[str] = []
    shared = nullcontext(browser.contexts[0])
    with (
        browser.new_context(**settings) if settings else shared as context,
        context.new_page() as page,
    ):
        page.set_default_timeout(WAIT)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.goto(site.url)
        expect(page.locator("#generate")).to_be_visible()
        yield page
    assert wrong == []


def write(page: Page, prompt: str, **fields: str) -> None:
    """Fill in the prompt and other fields by their ids."""
    page.locator("#prompt textarea").fill(prompt)
    for name, value in fields.items():
        field = page.locator(f"#{name}").locator("input[type=number], textarea, input").first
        field.fill(value)
        field.blur()


def generate(page: Page, prompt: str, **fields: str) -> None:
    write(page, prompt, **fields)
    page.locator("#generate").click()


def status(page: Page) -> Locator:
    return page.locator("#status textarea")


def both_run(site: Served) -> None:
    """Let passes until one who waits has the second row."""
    wait_until(lambda: site.engine.statistics().queued == 1)
    site.passes.let(2)
    wait_until(lambda: site.running() == 2)


def ended_by(page: Page, reason: str) -> None:
    expect(status(page)).to_have_value(re.compile(f"ended by: {words.REASONS[reason]}$"))


def text_of(page: Page) -> str:
    """What the output shows, as a reader has it."""
    return page.locator("#output textarea").input_value()


def shows(page: Page, text: str) -> None:
    """The output becomes this text: a page draws its parts one after another."""
    expect(page.locator("#output textarea")).to_have_value(text)


def bars(page: Page) -> Locator:
    return page.locator("#next_tokens button dt")


def test_generate_shows_prompt_and_continuation_and_why_it_ended(
    browser: Browser, site: Served, model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    with tab(browser, site) as page:
        generate(page, PROMPT, num_tokens="12", temperature="0")
        ended_by(page, "budget")
        shows(page, PROMPT + generated_text(model, tokenizer, PROMPT, 12))
        expect(status(page)).to_have_value(
            re.compile(r"^12 tokens, first after \d\.\d\d s.*, [\d.]+ tokens/s, ended by: ")
        )


def looks(element: Locator) -> list[str]:
    """Colours of text and background, as `r, g, b`."""
    return element.evaluate(
        """e => {
            const colour = getComputedStyle(e).color;
            let back = getComputedStyle(e).backgroundColor;
            for (; /, 0\\)|transparent/.test(back); e = e.parentElement)
                back = getComputedStyle(e.parentElement).backgroundColor;
            return [colour, back].map(c => c.replace(/[^\\d.,]/g, ""));
        }"""
    )


def test_the_text_grows_while_it_is_made(browser: Browser, story: Served) -> None:
    with tab(browser, story) as page:
        story.passes.hold()
        generate(page, PROMPT, num_tokens="500")
        shown = [""]
        for _ in range(3):
            story.passes.let(4)
            wait_until(lambda: text_of(page) != shown[-1])
            shown.append(text_of(page))
            assert (PROMPT + STORY).startswith(shown[-1])
        assert "ended by" not in status(page).input_value()
        story.passes.let_all()
        ended_by(page, "end_of_text")
        shows(page, PROMPT + STORY)


def test_a_slow_browser_ends_with_the_last_text(
    browser: Browser, tokenizer: PreTrainedTokenizerFast
) -> None:
    text = STORY[: len(STORY) // 9]
    with (
        served(ScriptedPasses(tokenizer, text), tokenizer) as site,
        tab(browser, site) as page,
    ):
        generate(page, "", num_tokens="1")  # what a page loads at its first answer is there then
        expect(status(page)).to_have_value(re.compile("^Error"))
        throttle = page.context.new_cdp_session(page)
        throttle.send("Emulation.setCPUThrottlingRate", {"rate": 5})
        generate(page, PROMPT, num_tokens="300")
        expect(page.locator("#output textarea")).to_have_value(PROMPT + text)
        ended_by(page, "end_of_text")


def test_stop_ends_it_and_frees_the_row(browser: Browser, story: Served) -> None:
    with tab(browser, story) as page:
        story.passes.hold()
        generate(page, PROMPT, num_tokens="500")
        story.passes.let(9)
        expect(status(page)).to_have_value(re.compile("tokens, first after"))
        page.locator("#stop").click()
        advance_until(story, lambda: story.running() == 0)
        ended_by(page, "stopped")
        assert (PROMPT + STORY).startswith(text_of(page))
        assert text_of(page) != PROMPT + STORY


def test_one_who_waits_is_told_the_place_in_the_queue(browser: Browser, story: Served) -> None:
    story.passes.hold()
    others = [story.engine.submit(story.request(PROMPT))]
    wait_until(lambda: story.running() == 1)
    others.append(story.engine.submit(story.request(PROMPT)))
    both_run(story)
    others.append(story.engine.submit(story.request(PROMPT)))
    with tab(browser, story) as page:
        generate(page, PROMPT)
        expect(status(page)).to_have_value("waiting: number 2 in the queue")
        others[2].cancel()
        expect(status(page)).to_have_value("waiting: number 1 in the queue")
        story.passes.let_all()
        ended_by(page, "budget")


@pytest.mark.parametrize("cancelled", [True, False], ids=["cancelled", "cancelling is lost"])
def test_clear_empties_the_page_and_frees_the_row(
    browser: Browser, story: Served, cancelled: bool
) -> None:
    before = story.engine.statistics().ended.get("stopped", 0)
    with tab(browser, story) as page:
        if not cancelled:
            page.route("**/cancel", lambda route: route.fulfill(json={"success": True}))
        page.locator("#prompt textarea").fill(PROMPT)
        page.locator("#look").click()
        expect(bars(page)).to_have_count(10)
        story.passes.hold()
        generate(page, PROMPT, num_tokens="500")
        story.passes.let(3)
        expect(status(page)).to_have_value(re.compile("token"))
        page.locator("#clear").click()
        expect(page.locator("#prompt textarea")).to_have_value("")
        advance_until(story, lambda: story.running() == 0)
        wait_until(lambda: story.engine.statistics().ended.get("stopped", 0) == before + 1)
        expect(page.locator("#output textarea")).to_have_value("")
        expect(status(page)).to_have_value("")
        expect(bars(page)).to_have_count(0)


def test_bad_input_is_answered_on_the_page_in_words(browser: Browser, site: Served) -> None:
    bad: dict[str, tuple[str, dict[str, str]]] = {
        "the prompt is empty: write something for the model to continue": ("", {}),
        r"the prompt has \d\d\d tokens, but the context .* holds 64: shorten .*": ("ЖЖ" * 90, {}),
        "seed must be a whole number from 0 up, .* not -1": (PROMPT, {"seed": "-1"}),
        "seed must be a whole number .* not '<b>x</b>'": (PROMPT, {"seed": "<b>x</b>"}),
    }
    with tab(browser, site) as page:
        for message, (prompt, fields) in bad.items():
            generate(page, prompt, **fields)
            expect(status(page)).to_have_value(re.compile(f"^Error: {message}$"))
            expect(page.locator("#status")).to_have_class(re.compile(r"\berror\b"))
            assert looks(status(page))[0] != looks(page.locator("#prompt textarea"))[0]
            generate(page, PROMPT, num_tokens="3", seed="")  # and can be put right
            ended_by(page, "budget")
            expect(page.locator("#status")).not_to_have_class(re.compile(r"\berror\b"))


def test_values_out_of_range_that_a_slider_cannot_have_are_answered_in_words_too(
    browser: Browser, site: Served
) -> None:
    """A page that was tampered with: the value is changed on its way to the server."""
    order = [*settings_of(), "prompt"]
    wrong: list[tuple[str, Any, str]] = [
        ("num_tokens", 65, "num_tokens must be from 1 to 64, not 65"),
        ("temperature", -1, "temperature must be 0 .* not -1"),
        ("top_k", -3, "top_k must be .* not -3"),
        ("top_p", 1.5, "top_p must be .* to 1 .* not 1.5"),
        ("repetition_penalty", 0, "repetition_penalty must be .* not 0"),
        ("min_p", 2, "min_p must be .* not 2"),
        ("num_tokens", None, "num_tokens must be a number, not empty"),
    ]

    def tamper(route: Any) -> None:
        body = route.request.post_data_json
        body["data"][order.index(name)] = value
        route.continue_(post_data=body)

    with tab(browser, site) as page:
        page.route("**/queue/join*", tamper)
        for name, value, message in wrong:  # noqa: B007 - `tamper` reads them
            generate(page, PROMPT)
            expect(status(page)).to_have_value(re.compile(f"^Error: {message}$"))
        page.unroute_all()


def test_sliders_end_where_the_configuration_does(browser: Browser, site: Served) -> None:
    with tab(browser, site) as page:
        slider = page.locator("#num_tokens input[type=range]")
        assert slider.get_attribute("max") == str(site.passes.sequence_length)
        write(page, PROMPT, num_tokens="9999")
        expect(page.locator("#num_tokens input[type=number]")).to_have_value("64")


def test_a_stop_string_ends_the_text_before_it(browser: Browser, story: Served) -> None:
    with tab(browser, story) as page:
        generate(page, PROMPT, stop_strings="nothing such\n\\n  is")
        ended_by(page, "stop_string")
        shows(page, PROMPT + STORY.partition("\n")[0])


def test_a_seed_is_shown_and_repeats_the_text(browser: Browser, site: Served) -> None:
    def drawn(seed: str) -> tuple[str, str]:
        with tab(browser, site) as page:
            generate(page, PROMPT, num_tokens="20", temperature="1", seed=seed)
            expect(status(page)).to_have_value(re.compile("ended by: "))
            (used,) = re.findall(r"seed (\d+)", status(page).input_value())
            return used, text_of(page)

    first = drawn("")
    assert drawn(first[0]) == first
    other = drawn("")
    assert other[0] != first[0]
    assert other[1] != first[1]


def test_examples_fill_in_the_page_and_none_is_run_at_the_start(
    browser: Browser, site: Served
) -> None:
    before = site.engine.statistics().submitted
    with tab(browser, site) as page:
        examples = page.locator("#examples button")
        expect(examples).to_have_count(len(words.EXAMPLES))
        assert len(words.EXAMPLES) >= 5
        for example in words.EXAMPLES:
            examples.get_by_text(example.name, exact=True).click()
            expect(page.locator("#prompt textarea")).to_have_value(example.prompt)
            expect(page.locator("#stop_strings textarea")).to_have_value(example.stop)
            expect(page.locator("#temperature input[type=number]")).to_have_value(
                f"{example.temperature:g}"
            )
        assert site.engine.statistics().submitted == before


def test_the_chart_has_the_likeliest_next_tokens_and_a_click_appends_one(
    browser: Browser, site: Served, model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    def likeliest(prompt: str) -> list[tuple[int, str]]:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            chances = model(ids).logits[0, -1].softmax(-1).topk(10)
        return [
            (int(token), f"{chance:.1%}")
            for token, chance in zip(chances.indices, chances.values.tolist(), strict=True)
        ]

    with tab(browser, site) as page:
        prompt = PROMPT
        page.locator("#prompt textarea").fill(prompt)
        page.locator("#look").click()
        for _ in range(2):
            expect(bars(page)).to_have_count(10)
            expected = likeliest(prompt)
            expect(bars(page).first).to_have_text(re.compile(f"^ *{expected[0][1]} "))
            names = [name.partition("   ") for name in bars(page).all_inner_texts()]
            assert [chance.strip() for chance, _, _ in names] == [c for _, c in expected]
            shown = [token for _, _, token in names]
            widths = [
                bar.evaluate("e => parseFloat(e.style.width)")
                for bar in page.locator("#next_tokens meter").all()
            ]
            assert widths == sorted(widths, reverse=True)
            with_text = [
                (number, tokenizer.decode([token]))
                for number, (token, _) in enumerate(expected)
                if "part of a character" not in shown[number] and "</s>" not in shown[number]
            ]
            number, text = with_text[1]
            assert shown[number].startswith(text.replace(" ", "␣"))
            bars(page).nth(number).click()
            prompt += text
            expect(page.locator("#prompt textarea")).to_have_value(prompt)


def test_a_next_token_without_text_is_explained(browser: Browser, story: Served) -> None:
    with tab(browser, story) as page:
        page.locator("#prompt textarea").fill(PROMPT)
        page.locator("#look").click()
        bars(page).filter(has_text="</s>").click()
        expect(page.locator("#remark textarea")).to_have_value(
            re.compile("^</s> has no text of its own to append")
        )
        expect(page.locator("#prompt textarea")).to_have_value(PROMPT)


def test_a_chart_is_there_for_its_own_prompt_only(browser: Browser, story: Served) -> None:
    with tab(browser, story) as page:
        prompt = page.locator("#prompt textarea")
        prompt.fill(PROMPT)
        page.locator("#look").click()
        expect(bars(page)).to_have_count(10)
        prompt.press("x")
        expect(bars(page)).to_have_count(0)
        page.locator("#look").click()
        expect(bars(page)).to_have_count(10)
        page.locator("#examples button").first.click()
        expect(bars(page)).to_have_count(0)
        story.passes.hold()
        page.locator("#look").click()
        wait_until(lambda: story.running() == 1)
        prompt.fill(PROMPT)  # before the chart of the example is there
        story.passes.let_all()
        wait_until(lambda: story.running() == 0)
        page.locator("#generate").click()  # whose end comes after that chart
        ended_by(page, "budget")
        expect(bars(page)).to_have_count(0)


def test_the_chart_of_an_empty_prompt_says_so(browser: Browser, site: Served) -> None:
    with tab(browser, site) as page:
        page.locator("#look").click()
        expect(page.locator("#remark textarea")).to_have_value(re.compile("the prompt is empty"))


def test_two_tabs_at_once_have_their_own_texts(
    browser: Browser, tokenizer: PreTrainedTokenizerFast, model: BloomForCausalLM
) -> None:
    passes = HeldPasses(ReferencePasses(model, batch_size=2))
    with (
        served(passes, tokenizer) as site,
        tab(browser, site) as one,
        tab(browser, site) as other,
    ):
        passes.hold()
        generate(one, "A dog", num_tokens="20", temperature="0")
        wait_until(lambda: site.running() == 1)
        generate(other, "Ein Hund", num_tokens="20", temperature="0")
        both_run(site)
        passes.let_all()
        ended_by(one, "budget")
        ended_by(other, "budget")
        shows(one, "A dog" + generated_text(model, tokenizer, "A dog", 20))
        shows(other, "Ein Hund" + generated_text(model, tokenizer, "Ein Hund", 20))


def test_stop_in_one_tab_leaves_the_other_alone(browser: Browser, story: Served) -> None:
    with tab(browser, story) as one, tab(browser, story) as other:
        story.passes.hold()
        generate(one, "A", num_tokens="500")
        wait_until(lambda: story.running() == 1)
        generate(other, "B", num_tokens="500")
        both_run(story)
        one.locator("#stop").click()
        advance_until(story, lambda: story.running() == 1)
        ended_by(one, "stopped")
        story.passes.let_all()
        ended_by(other, "end_of_text")
        shows(other, "B" + STORY)


def test_a_tab_that_is_closed_frees_its_row_and_its_place(browser: Browser, story: Served) -> None:
    before = story.engine.statistics().ended.get("stopped", 0)
    story.passes.hold()
    with tab(browser, story) as running, tab(browser, story) as waiting:
        other = story.engine.submit(story.request(PROMPT, 200))
        wait_until(lambda: story.running() == 1)
        generate(running, PROMPT, num_tokens="500")
        both_run(story)
        generate(waiting, PROMPT)
        wait_until(lambda: story.engine.statistics().queued == 1)

    def freed() -> bool:
        statistics = story.engine.statistics()
        return statistics.queued == 0 and statistics.ended.get("stopped", 0) == before + 2

    advance_until(story, freed)
    other.cancel()
    story.passes.let_all()


def test_a_tab_that_is_closed_before_it_listens_frees_its_row(
    browser: Browser, story: Served
) -> None:
    before = story.engine.statistics().ended.get("stopped", 0)
    story.passes.hold()
    with tab(browser, story) as page:
        page.route("**/queue/data*", lambda route: None)  # never sent
        generate(page, PROMPT, num_tokens="500")
        wait_until(lambda: story.running() == 1)
    advance_until(story, lambda: story.running() == 0)
    assert story.engine.statistics().ended.get("stopped", 0) == before + 1


@pytest.mark.parametrize("evil_is", ["the prompt", "the model's"])
def test_html_and_markdown_are_shown_as_text(
    browser: Browser, tokenizer: PreTrainedTokenizerFast, evil_is: str
) -> None:
    prompt, text = (EVIL, "fine") if evil_is == "the prompt" else ("A", EVIL)
    with (
        served(ScriptedPasses(tokenizer, text), tokenizer) as site,
        tab(browser, site) as page,
    ):
        generate(page, prompt, num_tokens="300")
        ended_by(page, "end_of_text")
        shows(page, prompt + text)
        page.locator("#look").click()
        expect(bars(page)).to_have_count(10)
        assert page.locator("#output :is(script, img, a, b, strong)").count() == 0
        assert page.evaluate("window.evil") is None


def test_the_page_asks_no_other_host_for_anything(browser: Browser, site: Served) -> None:
    asked: list[str] = []
    with tab(browser, site) as page:
        page.on("request", lambda request: asked.append(request.url))
        page.reload()
        generate(page, PROMPT, num_tokens="3")
        ended_by(page, "budget")
        page.locator("#look").click()
        expect(bars(page)).to_have_count(10)
        page.get_by_role("button", name="Use via API").click()
        expect(page.get_by_text("/next_tokens").first).to_be_visible()
    assert len(asked) > 20
    assert {httpx.URL(url).host for url in asked if not url.startswith(("data:", "blob:"))} == {
        "127.0.0.1"
    }
    html = httpx.get(site.url).text
    assert not re.search(r"""<(script|link|img|iframe)[^>]*(src|href)=["'](https?:)?//""", html)


PHONE = {"viewport": {"width": 375, "height": 740}, "has_touch": True, "is_mobile": True}


def test_shift_enter_is_told_where_there_is_a_keyboard(browser: Browser, site: Served) -> None:
    for more, told in ({}, True), (PHONE, False):
        with tab(browser, site, **more) as page:
            assert page.get_by_text(words.PROMPT_HINT).is_visible() == told


def test_the_page_fits_a_phone(browser: Browser, site: Served) -> None:
    with tab(browser, site, **PHONE) as page:
        generate(page, "word" * 10, num_tokens="20")
        ended_by(page, "budget")
        page.locator("#look").click()
        expect(bars(page)).to_have_count(10)
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        for name in ("generate", "stop", "clear", "output", "status", "next_tokens", "num_tokens"):
            box = page.locator(f"#{name}").bounding_box()
            assert box
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 375


def contrast(element: Locator) -> float:
    """Of text on its background, as WCAG 2 has it: from 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [float(part) / 255 for part in colour.split(",")[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted(luminance(colour) for colour in looks(element))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark_mode(
    browser: Browser, site: Served, scheme: str
) -> None:
    with tab(browser, site, color_scheme=scheme) as page:
        generate(page, PROMPT, num_tokens="8")
        ended_by(page, "budget")
        background = looks(page.locator("body"))[1].split(",")[0]
        assert (float(background) < 60) == (scheme == "dark")
        elements: dict[str, Callable[[], Locator]] = {
            "text": page.locator("#output textarea"),
            "status": status(page),
            "field": page.locator("#prompt textarea"),
        }
        found = {name: contrast(element) for name, element in elements.items()}
        assert {name: ratio for name, ratio in found.items() if ratio < 4.5} == {}
