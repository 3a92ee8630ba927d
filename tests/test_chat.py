"""Conversations: the tokenizer's chat template, and the turns that `--chat` keeps."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from byte_level import byte_level_tokenizer
from pseudo_terminal import answer, leave, terminal
from run_scripted import CHAT_TEMPLATE, ScriptedPasses
from transformers import AutoTokenizer

from run_inference import GenerationArguments, Generator, main
from utils.generation import LanguageModel
from utils.generation.chat import encode_chat
from utils.generation.tokenizer import load_tokenizer
from utils.setup import UserError

ROOM = SimpleNamespace(sequence_length=512, vocab_size=400)
TURNS = [
    {"role": "user", "content": "A dog?"},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "größer 🙂"},
]


class Recording(ScriptedPasses):
    """Passes that keep the prompts they are given."""

    def __init__(self, tokenizer: Any, text: str):
        super().__init__(tokenizer, text)
        self.prompts: list[list[int]] = []

    def prefill_chunk(self, slot: int, tokens: Any, start: int) -> Any:
        self.prompts.append(list(tokens))
        return super().prefill_chunk(slot, tokens, start)


@pytest.fixture
def tokenizer() -> Any:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def wanted(tokenizer: Any, turns: list[dict[str, str]]) -> list[int]:
    """By transformers."""
    return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True).input_ids)


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja"])
def test_turns_become_the_tokens_of_transformers(
    place: str, tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    if place.endswith("jinja"):
        (tmp_path / place).write_text(CHAT_TEMPLATE)
    else:
        settings = json.loads((tmp_path / place).read_text())
        (tmp_path / place).write_text(json.dumps(settings | {"chat_template": CHAT_TEMPLATE}))
    found = encode_chat(load_tokenizer(tmp_path), TURNS, ROOM)
    assert found == wanted(AutoTokenizer.from_pretrained(tmp_path), TURNS)
    assert found.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(
    ("template", "line"),
    [
        (None, "has no chat template"),
        ("{{ raise_exception('only\\none') }}", "refuses the messages"),
    ],
)
def test_what_cannot_be_a_conversation_is_one_line(
    template: Any, line: str, tokenizer: Any
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=line) as error:
        encode_chat(tokenizer, TURNS, ROOM)
    assert "\n" not in str(error.value)


def test_a_checkpoint_without_a_template_is_refused_before_it_is_loaded() -> None:
    with pytest.raises(UserError, match="has no chat template"):
        main(["--chat", "--prompt", "A dog"])


def test_a_prompt_is_one_turn(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    passes = Recording(tokenizer, "yes")
    model = LanguageModel(passes, tokenizer)  # type: ignore[arg-type]
    assert main(["--chat", "--prompt", "A dog?"], load=lambda config: model) == 0
    assert capsys.readouterr().out == "yes\n"
    assert passes.prompts == [wanted(tokenizer, TURNS[:1])]


def test_turns_are_kept_also_of_an_answer_that_was_stopped(tokenizer: Any) -> None:
    passes = Recording(tokenizer, "A cat.")
    arguments = GenerationArguments(chat=True)
    generator = Generator(LanguageModel(passes, tokenizer), arguments)  # type: ignore[arg-type]
    list(generator.steps("A dog?", arguments.settings()))
    steps = generator.steps("größer 🙂", arguments.settings())
    first = next(steps).text
    steps.close()
    list(generator.steps("More?", arguments.settings()))
    cut = [{"role": "assistant", "content": first}, {"role": "user", "content": "More?"}]
    turns = [TURNS[:1], TURNS, TURNS + cut]
    assert passes.prompts == [wanted(tokenizer, each) for each in turns]


def test_at_the_prompt_the_context_fills_until_the_conversation_begins_anew(
    tokenizer: Any, tmp_path: Path
) -> None:
    prompts, answered = ("A dog is an animal", "Ein Hund ist ein Tier"), "some words"
    turns = [{"role": "user", "content": text} for text in prompts]
    turns.insert(1, {"role": "assistant", "content": answered})
    room = str(len(wanted(tokenizer, turns)) - 1)
    with terminal(tmp_path, answered, options="--chat", CHAT="1", CONTEXT=room) as child:
        answer(child, "A dog is an animal", "", "", "")
        child.expect_exact("ended by: end_of_text")
        answer(child, "Ein Hund ist ein Tier", defaults=("A dog is an animal",))
        child.expect_exact("/new forgets the turns before")
        answer(child, "/new", defaults=("Ein Hund ist ein Tier",))
        child.expect_exact("begins anew")
        answer(child, "", defaults=("Ein Hund ist ein Tier",))
        child.expect_exact("ended by: end_of_text")
        leave(child)
