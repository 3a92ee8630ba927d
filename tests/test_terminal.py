"""The front end as a person has it: in a real pseudo-terminal, and with pipes."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect
import pytest
from byte_level import byte_level_tokenizer
from run_reference import PAUSE, STUCK, WAITING

from utils.terminal import for_terminal

SCRIPT = str(Path(__file__).with_name("run_reference.py"))
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")},
    "TERM": "xterm",
    "PROMPT_TOOLKIT_NO_CPR": "1",  # pexpect answers no question for the cursor's position
    "OMP_NUM_THREADS": "2",
}
UP = "\x1b[A"
EVIL = "\x1b]0;title\x07 \x1b[2J\x9b1m\r\tend"  # sets the title, clears the screen, goes back


@contextmanager
def terminal(
    tmp_path: Path, text: str = "a text", command: str = "", **environment: str
) -> Iterator[pexpect.spawn]:
    """The interactive prompt in a terminal, giving `text` to every prompt."""
    environment = {"XDG_STATE_HOME": str(tmp_path), "REFERENCE_TEXT": text, **environment}
    child = pexpect.spawn(
        "/bin/sh",
        ["-c", command or f"exec '{sys.executable}' '{SCRIPT}'"],
        env={**ENVIRONMENT, **environment},
        encoding="utf-8",
        timeout=60,
        dimensions=(40, 200),
    )
    try:
        yield child
    finally:
        child.close(force=True)


QUESTIONS = ("Prompt", "Temperature", "Top-k", "Number of tokens")


def answer(child: pexpect.spawn, *answers: str, shown: Sequence[str] | None = None) -> None:
    """Answers the last so many of the four questions in turn, all when there are four answers.

    `shown` are the defaults they must show in brackets.
    """


def leave(child: pexpect.spawn) -> None:
    """Ctrl-D at the prompt; the process must end with status 0."""
    child.expect("Prompt.*: ")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_a_prompt_is_continued_and_how_it_went_is_told(tmp_path: Path) -> None:
    with terminal(tmp_path, text="a friendly animal 🙂.") as child:
        answer(child, "A dog is ", "0.7", "5", "99")
        child.expect_exact("\x1b[2mA dog is \x1b[0ma friendly animal 🙂.\r\n")
        child.expect(r"\d+ tokens, first after \d+\.\d\d s, [\d.]+ tokens/s, ended by: end_of_text")
        leave(child)


def test_enter_keeps_the_last_values(tmp_path: Path) -> None:
    with terminal(tmp_path) as child:
        answer(child, "A cat", "", "", "")
        child.expect_exact("A cat\x1b[0ma text")
        answer(child, "", "0.5", "7", "2")
        child.expect("2 tokens, .* ended by: budget")
        child.expect_exact("Prompt [A cat]: ")
        child.send("\r")
        child.expect_exact("Temperature [0.5]: ")
        child.send("\r")
        child.expect_exact("Top-k [7]: ")
        child.send("\r")
        child.expect_exact("Number of tokens [2]: ")
        child.send("\r")
        child.expect("2 tokens, .* ended by: budget")
        leave(child)


def test_command_line_settings_are_the_first_defaults(tmp_path: Path) -> None:
    command = f"'{sys.executable}' '{SCRIPT}' --temperature 1.25 --top_k 3 --num_tokens 4 --stop x"
    with terminal(tmp_path, command=command) as child:
        answer(child, "A cat")
        child.expect_exact("Temperature [1.25]: ")
        child.send("0\r")
        child.expect_exact("Top-k [3]: ")
        child.send("\r")
        child.expect_exact("Number of tokens [4]: ")
        child.send("9\r")
        child.expect_exact("a te\r\n")
        child.expect("ended by: stop_string")
        leave(child)


@pytest.mark.parametrize(
    ("good", "bad", "error"),
    [
        ([], "", "error: the prompt must have some text"),
        (["A cat"], "warm", "error: temperature must be a number, not 'warm'"),
        (["A cat"], "-1", "error: temperature must be 0 .greedy. or .*, not -1.0"),
        (["A cat", "0"], "2.5", "error: top-k must be a whole number, not '2.5'"),
        (["A cat", "0"], "-2", "error: top_k must be .*, not -2"),
        (["A cat", "0", "0"], "0", "error: num_tokens must be 1 or more, not 0"),
    ],
)
def test_an_invalid_value_is_one_line_and_asked_for_again(
    tmp_path: Path, good: list[str], bad: str, error: str
) -> None:
    with terminal(tmp_path) as child:
        answer(child, *good, bad)
        child.expect(rf"{error}\r?\n")
        questions = ["Prompt: ", r"Temperature \[0.0\]: ", r"Top-k \[0\]: ", r"tokens \[64\]: "]
        for question, reply in zip(questions, ["A cow", "0", "0", "64"], strict=True):
            if questions.index(question) >= len(good):
                child.expect(question)
                child.send(f"{reply}\r")
        child.expect_exact("\x1b[0ma text\r\n")
        leave(child)


def test_a_prompt_that_is_too_long_is_one_line_and_asked_for_again(tmp_path: Path) -> None:
    with terminal(tmp_path) as child:
        answer(child, "ЖЖ" * 300, "", "", "")
        child.expect(r"error: the prompt has \d+ tokens, .* holds 512: shorten the prompt\r?\n")
        leave(child)


def test_ctrl_c_stops_a_generation_and_not_the_program(tmp_path: Path) -> None:
    with terminal(tmp_path, text=f"begun{PAUSE} and not ended") as child:
        answer(child, "A cat", "", "", "")
        child.expect_exact("\x1b[0mbegun")
        child.sendintr()
        child.expect(r"6 tokens, .*ended by: interrupted")
        answer(child, "A dog", "", "", "")
        child.expect_exact("\x1b[0mbegun")
        child.sendintr()
        child.expect(r"ended by: interrupted")
        leave(child)


def test_ctrl_c_stops_a_prompt_between_its_chunks(tmp_path: Path) -> None:
    with terminal(tmp_path, text=f"{PAUSE}never shown") as child:
        answer(child, "A cat", "", "", "64")
        child.expect_exact("64]: 64")
        child.expect_exact("\n")
        child.sendintr()
        child.expect_exact("0 tokens, ended by: interrupted")
        leave(child)


def test_a_second_ctrl_c_stops_a_pass_that_takes_too_long(tmp_path: Path) -> None:
    with terminal(tmp_path, text=f"begun{STUCK}") as child:
        answer(child, "A cat", "", "", "")
        child.expect_exact("\x1b[0mbegun")
        child.sendintr()
        child.expect_exact(WAITING)
        child.sendintr()
        child.expect(r"5 tokens, .*ended by: interrupted")
        leave(child)


def test_ctrl_c_at_a_question_drops_the_line_and_the_round(tmp_path: Path) -> None:
    with terminal(tmp_path) as child:
        child.expect_exact("Prompt: ")
        child.send("half a line")
        child.expect_exact("half a line")
        child.sendintr()
        answer(child, "A cat", "0.5")
        child.expect_exact("Top-k [0]: ")
        child.sendintr()
        child.expect_exact("Prompt: ")  # nothing of the round was kept
        child.send("A cow\r")
        child.expect_exact("Temperature [0.0]: ")
        child.send("\r\r\r")
        child.expect_exact("A cow\x1b[0ma text\r\n")
        leave(child)


def test_ctrl_d_at_any_question_leaves(tmp_path: Path) -> None:
    with terminal(tmp_path) as child:
        answer(child, "A cat", "0.5")
        child.expect_exact("Top-k [0]: ")
        child.sendeof()
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0


def test_the_line_can_be_edited(tmp_path: Path) -> None:
    with terminal(tmp_path) as child:
        child.expect_exact("Prompt: ")
        child.send("cat\x01A \x05s\x7f\x1b[D\x1b[Du\x1b[3~\r")  # to begin, end, back, left, delete
        child.expect_exact("Temperature")
        child.send("\r\r\r")
        child.expect_exact("A cut\x1b[0ma text\r\n")
        leave(child)


def test_history_is_kept_between_runs_for_the_owner_alone(tmp_path: Path) -> None:
    with terminal(tmp_path) as child:
        for prompt in ("The first prompt", "The second one"):
            answer(child, prompt, "", "", "")
            child.expect("ended by")
        leave(child)
    history = tmp_path / "bloom" / "prompt_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert stat.S_IMODE(history.parent.stat().st_mode) == 0o700
    with terminal(tmp_path) as child:
        child.expect_exact("Prompt: ")
        child.send(UP)
        child.expect_exact("The second one")
        child.send(UP + "!\r")
        child.expect_exact("Temperature")
        child.send("\r\r\r")
        child.expect_exact("The first prompt!\x1b[0ma text\r\n")
        leave(child)


def test_a_history_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "bloom").write_text("a file where the folder should be")
    with terminal(tmp_path) as child:
        answer(child, "A cat", "", "", "")
        child.expect_exact("a text\r\n")
        leave(child)


def test_without_colour_the_prompt_is_told_apart_by_brackets(tmp_path: Path) -> None:
    with terminal(tmp_path, NO_COLOR="1") as child:
        answer(child, "A cat", "", "", "")
        child.expect_exact("[A cat]a text\r\n")
        leave(child)


def test_with_stdout_redirected_the_questions_stay_on_the_terminal(tmp_path: Path) -> None:
    output = tmp_path / "output"
    command = f"exec '{sys.executable}' '{SCRIPT}' > '{output}'"
    with terminal(tmp_path, text=EVIL, command=command) as child:
        answer(child, "A cat", "", "", "")
        child.expect("ended by: end_of_text")
        leave(child)
    assert output.read_bytes() == EVIL.encode() + b"\n"


@pytest.mark.parametrize("one_shot", [True, False])
def test_generated_text_cannot_control_the_terminal(tmp_path: Path, one_shot: bool) -> None:
    command = f"exec '{sys.executable}' '{SCRIPT}' --prompt 'A cat'" if one_shot else ""
    with terminal(tmp_path, text=EVIL, command=command) as child:
        if not one_shot:
            answer(child, "A cat", "", "", "")
        # The terminal's driver shows a tab as it is or as spaces.
        child.expect(r"\\x1b\]0;title\\x07 \\x1b\[2J\\x9b1m\\x0d\s+end\r\n")


def test_json_for_a_terminal_has_no_control_characters(tmp_path: Path) -> None:
    text = EVIL + "\x7f é"
    command = f"exec '{sys.executable}' '{SCRIPT}' --prompt 'A cat' --json 2>/dev/null"
    with terminal(tmp_path, text=text, command=command) as child:
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


def one_shot(
    *arguments: str, stdin: bytes = b"", text: str | None = "a text", script: str = SCRIPT
) -> subprocess.CompletedProcess:
    environment = dict(ENVIRONMENT)
    if text is not None:
        environment["REFERENCE_TEXT"] = text
    return subprocess.run(
        [sys.executable, script, *arguments],
        input=stdin,
        env=environment,
        capture_output=True,
        timeout=120,
        check=False,
    )


def test_one_shot_prints_the_text_alone_on_stdout() -> None:
    done = one_shot("--prompt", "A dog is", text="größer 🙂\x1b!")
    assert (done.returncode, done.stdout.decode()) == (0, "größer 🙂\x1b!\n")
    assert re.fullmatch(
        r"\d+ tokens, first after \d+\.\d\d s, [\d.]+ tokens/s, ended by: end_of_text\n",
        done.stderr.decode(),
    )


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_piped_prompt_is_read_to_its_end_without_the_last_line_end(end: bytes) -> None:
    done = one_shot("--json", stdin="Où est\nle chat ?".encode() + end)
    assert (done.returncode, json.loads(done.stdout)["prompt"]) == (0, "Où est\nle chat ?")


def test_stop_strings_and_a_text_at_once() -> None:
    done = one_shot("--prompt", "A", "--no_stream", "--stop", "xyz", "--stop", "ex", "--stop=--")
    assert (done.returncode, done.stdout) == (0, b"a t\n")
    assert b"ended by: stop_string" in done.stderr


def test_json_has_the_text_its_ids_and_the_settings_that_repeat_it() -> None:
    """On a model that is really sampled from."""
    settings = ["--prompt", "A dog", "--num_tokens", "12", "--top_k", "90", "--temperature", "1.5"]
    first = json.loads(one_shot("--json", *settings, text=None).stdout)
    seed = first["settings"]["seed"]
    again = json.loads(one_shot("--json", *settings, "--seed", str(seed), text=None).stdout)
    timed = {"time_to_first_token", "tokens_per_second", "prompt_tokens_per_second"}
    for result in (first, again):
        assert all(result.pop(name) > 0 for name in timed)
    assert first == again
    tokenizer = byte_level_tokenizer()
    assert first["text"] == tokenizer.decode(first["ids"], skip_special_tokens=True)
    assert first["tokens"] == len(first["ids"]) == 12
    assert first["prompt_tokens"] == len(tokenizer("A dog").input_ids)
    assert (first["prompt"], first["finish_reason"]) == ("A dog", "budget")
    assert first["settings"] == {
        "temperature": 1.5,
        "top_k": 90,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "seed": seed,
        "num_tokens": 12,
        "stop": [],
    }


@pytest.mark.parametrize(
    ("arguments", "stdin", "error"),
    [
        (["--prompt", "A", "--top_p", "1.5"], b"", "top_p must be .* at most 1 .*, not 1.5"),
        (["--prompt", "A", "--num_tokens", "0"], b"", "num_tokens must be 1 or more, not 0"),
        (["--prompt", "A", "--temperature", "hot"], b"", ".*temperature.*hot.*"),
        (["--prompt", "A", "--stop", ""], b"", "a stop string must .*"),
        (["--prompt", "A", "--heads", "3"], b"", "hidden_size must .*"),
        (["--prompt", ""], b"", "the prompt is empty: .*"),
        ([], b"", "the prompt is empty: .*"),
        ([], b"caf\xe9", "standard input is not UTF-8 at byte 3"),
        (["--prompt", "ЖЖ" * 300], b"", r"the prompt has \d+ tokens.* holds 512.*"),
        (["--prompt", b"caf\xe9"], b"", "the prompt is no valid text at character 3"),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_status_2(
    arguments: list[str], stdin: bytes, error: str
) -> None:
    done = one_shot(*arguments, stdin=stdin)
    assert (done.returncode, done.stdout) == (2, b"")
    assert re.fullmatch(f"error: {error}\n", done.stderr.decode())


def test_ctrl_c_ends_one_shot_with_status_130_and_no_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, SCRIPT, "--prompt", "A cat"],
        env={**ENVIRONMENT, "REFERENCE_TEXT": f"begun{STUCK}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == b"begun"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, b"\n", b"")


def test_a_reader_that_leaves_ends_the_run_quietly() -> None:
    read, write = os.pipe()
    os.close(read)
    with subprocess.Popen(
        [sys.executable, SCRIPT, "--prompt", "A cat"],
        env={**ENVIRONMENT, "REFERENCE_TEXT": "a text"},
        stdin=subprocess.DEVNULL,
        stdout=write,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(write)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (141, b"")
