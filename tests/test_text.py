"""Streamed text: increments add up to decoding at once, and stop strings cut exactly."""

from __future__ import annotations

import random

import pytest
from byte_level import TEXTS, byte_level_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from utils.generation.text import StopStrings, TextStream

STRINGS = [
    *TEXTS,
    "",
    " leading and trailing spaces  ",
    "\n\tlines\r\n\n",
    "naïve café — “quotes” … 100 €",
    "🙂👩‍👩‍👧‍👦🇫🇷 flags and families 👍🏽",
    "हिन्दी ภาษาไทย 日本語テキスト 𝒎𝒂𝒕𝒉 𐍈",
    "\N{REPLACEMENT CHARACTER} itself, twice: \N{REPLACEMENT CHARACTER}",
]


def increments(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*map(stream.push, ids), stream.flush()]


@pytest.mark.parametrize("text", STRINGS)
def test_increments_add_up_to_the_text(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert "".join(increments(tokenizer, ids)) == tokenizer.decode(ids) == text


def test_nothing_is_emitted_within_a_character(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("🙂").input_ids
    assert len(ids) > 1
    assert increments(tokenizer, ids) == [""] * (len(ids) - 1) + ["🙂", ""]


def test_a_character_is_emitted_with_its_last_token(tokenizer: PreTrainedTokenizerFast) -> None:
    for text in STRINGS:
        ids = tokenizer(text).input_ids
        stream, shown = TextStream(tokenizer), ""
        for count, token in enumerate(ids, 1):
            shown += stream.push(token)
            complete = tokenizer.decode(ids[:count])
            assert shown == complete or shown + "\ufffd" == complete


def test_any_sequence_of_tokens_streams_as_it_decodes(tokenizer: PreTrainedTokenizerFast) -> None:
    """Random tokens: broken characters, special tokens and rows beyond the vocabulary included."""
    choose = random.Random(0)
    for _ in range(300):
        ids = choose.choices(range(len(tokenizer) + 3), k=choose.randrange(30))
        known = [token for token in ids if token < len(tokenizer)]
        expected = tokenizer.decode(known, skip_special_tokens=True)
        assert "".join(increments(tokenizer, ids)) == expected


def test_a_character_cut_off_at_the_end_shows_as_replaced(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    ids = tokenizer("a🙂").input_ids[:-1]
    assert increments(tokenizer, ids)[-1] == "\ufffd"
    assert "".join(increments(tokenizer, ids)) == tokenizer.decode(ids) == "a\ufffd"


def test_special_tokens_have_no_text(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = [tokenizer.bos_token_id, *tokenizer("cat").input_ids, tokenizer.eos_token_id]
    assert "".join(increments(tokenizer, ids)) == "cat"


def test_added_tokens_stream_as_they_decode() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(["<code>", "€ and a space", "ĠÃ"])
    ids = tokenizer("see <code>: € and a space ĠÃ 🙂").input_ids
    assert len(tokenizer) - 1 in ids
    assert "".join(increments(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.decoder = decoders.Metaspace()
    with pytest.raises(ValueError, match="byte-level BPE, not as Metaspace"):
        TextStream(PreTrainedTokenizerFast(tokenizer_object=backend))


def stopped(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    """The text shown for these increments, and the stop string found."""
    stream = StopStrings(stops)
    shown = "".join(map(stream.push, pieces))
    return shown + stream.flush(), stream.found


@pytest.mark.parametrize(
    ("stops", "text", "shown", "found"),
    [
        ([], "all of it", "all of it", None),
        (["."], "One. Two.", "One", "."),
        (["\n\n"], "a\nb\n\nc", "a\nb", "\n\n"),
        (["END"], "ENENDS", "EN", "END"),
        (["aab"], "aaaab", "aa", "aab"),
        (["abac", "c"], "ababac", "ab", "abac"),
        (["never"], "ends with nev", "ends with nev", None),
        (["abc", "b"], "abc", "a", "b"),
        (["yz", "xyz"], "wxyz", "w", "xyz"),
        (["é🙂"], "caf é🙂 x", "caf ", "é🙂"),
        (["all"], "all", "", "all"),
    ],
)
def test_text_is_cut_at_the_first_stop_string_however_it_is_split(
    stops: list[str], text: str, shown: str, found: str | None
) -> None:
    choose = random.Random(0)
    splits = [[text], list(text)]
    for _ in range(50):
        cuts = sorted(choose.choices(range(len(text) + 1), k=3))
        begins, ends = [0, *cuts], [*cuts, len(text)]
        splits.append([text[a:b] for a, b in zip(begins, ends, strict=True)])
    for pieces in splits:
        assert stopped(stops, pieces) == (shown, found)


def test_only_a_possible_beginning_is_held_back() -> None:
    stream = StopStrings(["stop", "\n\n"])
    assert stream.push("do not st") == "do not "
    assert stream.push("art\n") == "start"
    assert stream.push("x") == "\nx"
    assert stream.flush() == ""


def test_nothing_is_shown_after_a_stop_string() -> None:
    stream = StopStrings(["."])
    assert stream.push("a. b") == "a"
    assert stream.push("c.d") == ""
    assert stream.flush() == ""


def test_a_stop_string_spans_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("A cat 🙂 is a dog").input_ids
    stop = "t 🙂 i"
    assert len(tokenizer(stop).input_ids) > 3
    assert stopped([stop], increments(tokenizer, ids)) == ("A ca", stop)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one character"):
        StopStrings(["a", ""])
