"""Settings of a request: one field makes an option, a control of the page, an API parameter."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import run_inference
from config import parse_arguments
from utils.generation.settings import GenerationSettings, settings_of
from utils.serving.about import About
from utils.serving.given_settings import checked
from utils.serving.page import words

if TYPE_CHECKING:
    import gradio as gr

ODD = {int: 3, float: 0.5, tuple: ("a",)}
"""A value for each type that every setting of it may have, and is the default of none."""


def stand_in(**more: Any) -> Any:
    """A service for a page that is only looked at."""
    more = {"defaults": {}, **more}
    passes = SimpleNamespace(sequence_length=64, vocab_size=99, batch_size=1)
    engine = SimpleNamespace(passes=passes, max_queue=4)
    return SimpleNamespace(engine=engine, max_tokens=64, about=About(), **more)


def page_of(service: Any) -> gr.Blocks:
    from utils.serving.page.layout import build_page  # late: Gradio takes seconds

    return build_page(service)


@pytest.fixture(scope="module")
def page() -> gr.Blocks:
    return page_of(stand_in())


def test_every_field_is_a_setting() -> None:
    assert set(settings_of()) == {field.name for field in dataclasses.fields(GenerationSettings)}


@pytest.mark.parametrize("name", settings_of())
def test_a_setting_is_an_option_of_the_command_line(name: str) -> None:
    value = ODD[settings_of()[name].kind]
    text = value[0] if isinstance(value, tuple) else str(value)
    _, arguments = parse_arguments(
        [f"--{name.replace('_', '-')}", text], extra=run_inference.GenerationArguments
    )
    assert arguments.settings() == GenerationSettings(**{name: value})


@pytest.mark.parametrize("name", settings_of())
def test_a_setting_is_a_control_of_the_page_with_its_label_and_help(
    page: gr.Blocks, name: str
) -> None:
    control = settings_of()[name].control
    (found,) = [
        block for block in page.blocks.values() if getattr(block, "label", 0) == control.label
    ]
    help = control.info or settings_of()[name].help
    assert found.info.rstrip(".").lower() == help.lower()


@pytest.mark.parametrize("name", settings_of())
def test_a_setting_is_a_parameter_of_the_api_with_its_default(page: gr.Blocks, name: str) -> None:
    parameters = page.get_api_info()["named_endpoints"]["/generate"]["parameters"]
    (found,) = [p for p in parameters if p["parameter_name"] == name]
    default = settings_of()[name].default
    assert found["parameter_has_default"]
    assert found["parameter_default"] == (list(default) if default == () else default)


def test_page_and_api_begin_with_what_the_checkpoint_says() -> None:
    defaults = {"temperature": 2.5, "top_k": 30, "repetition_penalty": 0.9, "num_tokens": 17}
    page = page_of(stand_in(defaults=defaults))
    shown = {getattr(b, "elem_id", ""): getattr(b, "value", None) for b in page.blocks.values()}
    parameters = page.get_api_info()["named_endpoints"]["/generate"]["parameters"]
    sent = {p["parameter_name"]: p.get("parameter_default") for p in parameters}
    for name, value in defaults.items():
        assert (name, shown[name], sent[name]) == (name, value, value)
    assert (shown["top_p"], sent["top_p"]) == (1.0, 1.0)


def test_a_request_that_gives_a_setting_overrules_the_checkpoint() -> None:
    defaults = {"temperature": 0.5, "num_tokens": 17}
    settings = checked({"temperature": 0.0}, 64, defaults=defaults)
    assert (settings.temperature, settings.num_tokens) == (0.0, 17)


@pytest.mark.parametrize("name", settings_of())
def test_a_setting_that_is_sent_is_the_one_used(name: str) -> None:
    value = ODD[settings_of()[name].kind]
    assert getattr(checked({name: value}, max_tokens=64), name) == value


def test_the_page_begins_at_a_temperature_with_some_variety(page: gr.Blocks) -> None:
    (found,) = [b for b in page.blocks.values() if getattr(b, "elem_id", "") == "temperature"]
    assert found.value == 0.7


@pytest.mark.parametrize(
    ("about", "said", "unsaid"),
    [
        (About("bloom_tiny", "float32", 6_800_000), "6.8 million parameters, float32", "46"),
        (About("bloom_tiny"), "trained on English", "46"),
        (About("bloom-560m", "float16", 559_000_000), "46 languages", "English"),
        (About("bloomz-7b1", "bfloat16", 7_069_000_000), "does what a text asks", "few-shot"),
        (About("mine"), "**mine** is served", "languages"),
    ],
)
def test_the_page_describes_the_model_that_it_serves(about: About, said: str, unsaid: str) -> None:
    text = words.introduction(about)
    assert about.name in text and said in text and unsaid not in text


def test_an_english_model_is_shown_no_example_of_translation() -> None:
    names = [example.name for example in words.examples_for(About("bloom_tiny"))]
    assert names and "Translation" not in names
    assert "Translation" in [example.name for example in words.examples_for(About("bloom-560m"))]
