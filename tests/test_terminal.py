"""The interactive prompt, as a person at a real pseudo-terminal has it."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
import termios
from pathlib import Path

import pexpect
import pytest
from jobs import children
from processes import free_port
from pseudo_terminal import DEFAULTS, EVIL, answer, leave, settled, terminal
from run_scripted import LISTEN, LISTENING, PAUSE

from utils.writing import for_terminal


def test_a_prompt_is_continued_and_how_it_went_is_told(tmp_path: Path) -> None:
    with terminal(tmp_path, text="a friendly animal 🙂.") as child:
        answer(child, "A dog is ", "0.7", "5", "99")
        child.expect_exact("\x1b[2mA dog is \x1b[0ma friendly animal 🙂.\r\n")
        child.expect(r"\d+ tokens, first after \d+\.\d\d s, [\d.]+ tokens/s, ended by: end_of_text")
        leave(child)


def test_after_the_first_text_the_prompt_is_asked_for_alone(tmp_path: Path) -> None:
    with terminal(tmp_path) as child:
        answer(child, "A cat", "", "", "2")
        child.expect("2 tokens, .* ended by: budget")
        child.expect_exact("From now on only the prompt is asked for")
        answer(child, "", defaults=("A cat",))
        child.expect("A cat.*2 tokens, .* ended by: budget")
        answer(child, "A dog", defaults=("A cat",))
        child.expect("A dog.*2 tokens, .* ended by: budget")
        leave(child)


def test_set_changes_what_settings_shows_and_the_next_text(tmp_path: Path) -> None:
    with terminal(tmp_path) as child:
        answer(child, "A cat", "", "", "")
        child.expect_exact("ended by: end_of_text")
        for command in ("/set num_tokens 2", "/set min-p 0.25", "/set seed 5", "/settings"):
            answer(child, command, defaults=("A cat",))
        child.expect(r"num_tokens +2 ")
        answer(child, "/set stop so", defaults=("A cat",))
        answer(child, "", defaults=("A cat",))
        child.expect("2 tokens, .* ended by: stop_string")
        leave(child)


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("/set heat 1", r"there is no setting 'heat'; there are num_tokens, temperature, [^\r\n]*"),
        ("/set temperature hot", r"temperature must be 0 \(greedy\) or [^\r\n]*, not 'hot'"),
        ("/set temperature", r"temperature must be [^\r\n]*, not ''"),
        ("/set top_p 0", r"top_p must be [^\r\n]*, not 0.0"),
    ],
)
def test_a_set_that_is_not_possible_is_one_line(tmp_path: Path, command: str, error: str) -> None:
    with terminal(tmp_path) as child:
        answer(child, command)
        child.expect(rf"error: {error}\r\n")
        leave(child)


@pytest.mark.parametrize("after_a_text", [False, True])
def test_quit_leaves_as_ctrl_d_does(tmp_path: Path, after_a_text: bool) -> None:
    with terminal(tmp_path) as child:
        if after_a_text:
            answer(child, "A cat", "", "", "")
            child.expect_exact("ended by")
        child.expect("Prompt.*:")
        child.send("quit\r")
        child.expect(pexpect.EOF)
        assert child.wait() == 0


def test_settings_of_the_command_line_are_the_first_defaults(tmp_path: Path) -> None:
    options = "--temperature 1.25 --top_k 3 --num_tokens 4 --stop r --stop x"
    with terminal(tmp_path, options=options) as child:
        answer(child, "A cat", "0", "", "9", defaults=("", "1.25", "3", "4"))
        child.expect_exact("A cat\x1b[0msome wo\r\n")
        child.expect("ended by: stop_string")
        leave(child)


def test_an_invalid_value_is_one_line_and_asked_for_again(tmp_path: Path) -> None:
    rounds = [
        (0, "", "the prompt must have some text"),
        (1, "warm", r"temperature must be 0 \(greedy\) or [^\r\n]*, not 'warm'"),
        (1, "-1", r"temperature must be 0 \(greedy\) or [^\r\n]*, not -1.0"),
        (2, "2.5", r"top_k must be a whole number [^\r\n]*, not '2.5'"),
        (2, "-2", r"top_k must be [^\r\n]*, not -2"),
        (3, "0", "num_tokens must be a whole number from 1 up, not 0"),
    ]
    good = ("A cat", "0", "0", "64")
    with terminal(tmp_path) as child:
        question = 0
        for bad_question, bad, error in rounds:
            answer(child, *good[question:bad_question], bad, first=question)
            child.expect(rf"error: {error}\r\n")
            question = bad_question
        answer(child, *good[question:], first=question)
        child.expect_exact("A cat\x1b[0msome words\r\n")
        answer(child, "ЖЖ" * 300, defaults=("A cat",))
        child.expect(r"error: the prompt has \d+ tokens, .* holds 512: shorten the prompt\r\n")
        leave(child)


def test_ctrl_c_stops_a_generation_and_not_the_program(tmp_path: Path) -> None:
    with terminal(tmp_path, text=f"begun{PAUSE} and not ended") as child:
        for answers, last in (("A cat", "", "", ""), ""), (("A dog",), "A cat"):
            answer(child, *answers, defaults=(last, *DEFAULTS[1:]))
            child.expect_exact("\x1b[0mbegun")
            child.sendintr()
            child.expect(r"[56] tokens, .*ended by: interrupted")
        leave(child)


def test_ctrl_c_stops_a_prompt_between_its_chunks(tmp_path: Path) -> None:
    with terminal(tmp_path, text=f"{LISTEN}{PAUSE}never shown") as child:
        answer(child, "A cat", "", "", "")
        child.expect_exact(LISTENING)
        child.sendintr()
        child.expect_exact("0 tokens, ended by: interrupted")
        leave(child)


def test_a_second_ctrl_c_stops_a_pass_that_takes_too_long(tmp_path: Path) -> None:
    with terminal(tmp_path, text=f"begun{PAUSE}{LISTEN}{PAUSE}never shown") as child:
        answer(child, "A cat", "", "", "")
        child.expect_exact("\x1b[0mbegun")
        child.sendintr()
        child.expect_exact(LISTENING)
        child.sendintr()
        child.expect(r"5 tokens, .*ended by: interrupted")
        leave(child)


def test_ctrl_c_at_a_question_drops_the_line_and_the_round(tmp_path: Path) -> None:
    with terminal(tmp_path) as child:
        child.expect_exact("Prompt:")
        child.send("half a line")
        child.sendintr()
        answer(child, "A cat", "0.5")
        child.expect_exact("Top-k [0]:")
        child.sendintr()
        answer(child, "A cow", "", "", "")  # with the first defaults: nothing was kept
        child.expect_exact("A cow\x1b[0msome words\r\n")
        leave(child)


def test_ctrl_d_at_a_later_question_leaves_too(tmp_path: Path) -> None:
    with terminal(tmp_path) as child:
        answer(child, "A cat", "0.5")
        child.expect_exact("Top-k [0]:")
        child.sendeof()
        child.expect(pexpect.EOF)
        assert child.wait() == 0


def test_the_line_can_be_edited(tmp_path: Path) -> None:
    begin, end, backspace, left, delete = "\x01", "\x05", "\x7f", "\x1b[D", "\x1b[3~"
    edits = f"cat{begin}A {end}s{backspace}{left}{left}u{delete}"
    with terminal(tmp_path) as child:
        answer(child, edits, "", "", "")
        child.expect_exact("A cut\x1b[0msome words\r\n")
        leave(child)


def test_history_is_kept_between_runs_for_the_owner_alone(tmp_path: Path) -> None:
    up = "\x1b[A"
    with terminal(tmp_path) as child:
        answer(child, "The first prompt", "", "", "")
        answer(child, "The second", defaults=("The first prompt",))
        child.expect("The second.*ended by")
        leave(child)
    history = tmp_path / "bloom" / "prompt_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert stat.S_IMODE(history.parent.stat().st_mode) == 0o700
    with terminal(tmp_path) as child:
        child.expect_exact("Prompt:")
        child.send(up)
        child.expect_exact("The second")  # the file is read in the background
        child.send(up + "!\r")
        answer(child, "", "", "", first=1)
        child.expect_exact("The first prompt!\x1b[0msome words\r\n")
        leave(child)


def test_a_history_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "bloom").write_text("a file where the folder should be")
    with terminal(tmp_path) as child:
        answer(child, "A cat", "", "", "")
        child.expect_exact("some words\r\n")
        leave(child)


def test_without_colour_the_prompt_is_told_apart_by_brackets(tmp_path: Path) -> None:
    with terminal(tmp_path, NO_COLOR="1") as child:
        answer(child, "A cat", "", "", "")
        child.expect_exact("[A cat]some words\r\n")
        leave(child)


def test_with_stdout_redirected_the_questions_stay_on_the_terminal(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with terminal(tmp_path, text=EVIL, options=f"> '{output}'") as child:
        answer(child, "A cat", "", "", "")
        child.expect("ended by: end_of_text")
        leave(child)
    assert output.read_bytes() == EVIL.encode() + b"\n"


@pytest.mark.parametrize("one_shot", [True, False])
def test_generated_text_cannot_control_the_terminal(tmp_path: Path, one_shot: bool) -> None:
    options = "--prompt 'A cat'" if one_shot else ""
    with terminal(tmp_path, text=EVIL, options=options) as child:
        if not one_shot:
            answer(child, "A cat", "", "", "")
        # The terminal's driver shows a tab as it is or as spaces.
        child.expect(r"\\x1b\]0;title\\x07 \\x1b\[2J\\x9b1m\\x0d\s+end\r\n")


def test_json_for_a_terminal_has_no_control_characters(tmp_path: Path) -> None:
    text = EVIL + "\x7f é"
    with terminal(tmp_path, text, options="--prompt 'A cat' --json 2>/dev/null") as child:
        child.expect(pexpect.EOF)
        output = child.before.replace("\r\n", "")
    assert output.isascii() and output.isprintable()
    assert json.loads(output)["text"] == text


def test_only_line_ends_and_tabs_are_left_of_control_characters() -> None:
    text = "".join(map(chr, range(0x110))) + "🙂"
    shown = for_terminal(text)
    assert [c for c in shown if ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0] == ["\t", "\n"]
    assert for_terminal("naïve 🙂\n\tx") == "naïve 🙂\n\tx"
    assert for_terminal("\x1b[2J") == "\\x1b[2J"


def test_a_dumb_terminal_gets_no_escape_sequence(tmp_path: Path) -> None:
    with terminal(tmp_path, TERM="dumb") as child:
        seen = ""
        for question, reply in zip(
            ("Prompt:", "Temperature [0.0]:", "Top-k [0]:", "Number of tokens [64]:"),
            ("A cat", "0.5", "", ""),
            strict=True,
        ):
            child.expect_exact(question)
            seen += child.before
            child.send(reply + "\r")
        child.expect_exact("[A cat]some words")
        seen += child.before
        child.expect("Prompt.*:")
        seen += child.before
        child.sendeof()
        child.expect(pexpect.EOF)
        seen += child.before
    assert "\x1b" not in seen


@pytest.mark.parametrize(
    ("sent", "term"), [("as a key", "xterm"), ("as a key", "dumb"), ("as a signal", "xterm")]
)
def test_many_ctrl_c_at_the_prompt_leave_no_traceback(sent: str, term: str, tmp_path: Path) -> None:
    with terminal(tmp_path, TERM=term) as child:
        child.expect_exact("Prompt:")
        for _ in range(300):
            child.sendintr()
            if sent == "as a signal":
                child.kill(signal.SIGINT)
        seen = settled(child)
        for question, reply in (("", "A cat"), ("Temp", ""), ("Top-k", ""), ("Number", "")):
            child.expect_exact(question)
            seen += child.before
            child.send(reply + "\r")
        child.expect_exact("ended by: end_of_text")
        seen += child.before
        leave(child)
    assert "Traceback" not in seen


def echoes(child: pexpect.spawn) -> bool:
    """Whether the terminal shows what is typed, as it does but while a line is edited."""
    return bool(termios.tcgetattr(child.child_fd)[3] & termios.ECHO)


def test_sigterm_at_the_prompt_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    with terminal(tmp_path) as child:
        child.expect_exact("Prompt:")
        assert not echoes(child)
        child.kill(signal.SIGTERM)
        assert child.wait() == 143
        assert echoes(child)


def test_a_rank_that_dies_leaves_the_terminal_of_the_prompt_as_it_was(tmp_path: Path) -> None:
    job = ["-m", "popdist.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    program = [sys.executable, *job, "run_inference.py", "--tensor_parallel_1", "2"]
    with terminal(tmp_path, program=program) as child:
        child.expect_exact("Prompt:")
        assert not echoes(child)
        os.kill(children(child.pid)[1], signal.SIGKILL)
        child.expect_exact("was ended by SIGKILL")
        assert child.wait() == 1
        assert echoes(child)
