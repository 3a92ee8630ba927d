"""Prompts of a file: the texts of transformers, in order, also after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run_python, start_python
from serving import wait_until
from transformers import AutoModelForCausalLM, AutoTokenizer

from config import REPOSITORY
from run_inference import main
from utils.setup import UserError

SMALL = ["--sequence_length", "64", "--prompt_chunks", "16", "--batch_size", "3"]


def command(given: Path, made: Path, *words: str) -> list[str]:
    files = ["--input", str(given), "--output", str(made)]
    return ["run_inference.py", *SMALL, *files, *words]


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def greedy(prompts: list[str], num_tokens: int) -> list[list[int]]:
    """Transformers' tokens."""
    folder = REPOSITORY / "models" / "bloom_tiny"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")
        made = model.generate(**ids, max_new_tokens=num_tokens, do_sample=False)
        found.append(made[0, ids.input_ids.shape[1] :].tolist())
    return found


def test_plain_lines_are_continued_as_transformers_does_and_in_order(tmp_path: Path) -> None:
    prompts = [f"{name} said unto" for name in ("The king", "Elizabeth", "Moses", "A dog", "He")]
    given, made = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    given.write_text("\n\n".join(prompts) + "\r\n")
    assert main([*SMALL, "--input", str(given), "--output", str(made), "--num_tokens", "9"]) == 0
    found = answers(made)
    assert [(a["index"], a["prompt"]) for a in found] == list(enumerate(prompts))
    assert [a["ids"] for a in found] == greedy(prompts, 9)


def test_a_run_that_is_killed_goes_on_and_neither_loses_nor_repeats_a_line(tmp_path: Path) -> None:
    given, made = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts = [f"Number {number} of the" for number in range(30)]
    lines = [{"prompt": prompt, "num_tokens": 1 + 7 * n % 40} for n, prompt in enumerate(prompts)]
    given.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = command(given, made, "--temperature", "0.8", "--seed", "3")
    kills, pause = 0, threading.Event()
    for wanted in (5, 12, 20):
        child = start_python(*words, stderr=subprocess.DEVNULL)
        while child.poll() is None:
            if made.exists() and made.read_bytes().count(b"\n") >= wanted:
                child.kill()
                kills += 1
                break
            pause.wait(0.005)
        child.wait()
    assert kills > 0
    with made.open("ab") as file:
        file.write(b'{"index": 30, "prom')  # a line that was cut off
    run_python(*words, check=True)
    whole = tmp_path / "whole.jsonl"
    run_python(*command(given, whole, "--temperature", "0.8", "--seed", "3"), check=True)
    assert [a["prompt"] for a in answers(made)] == prompts
    assert [a["text"] for a in answers(made)] == [a["text"] for a in answers(whole)]
    assert [a["settings"]["seed"] for a in answers(made)] == list(range(3, 33))


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.jsonl", '{"prompt": "A"}\n["B"]\n', r"a\.jsonl, line 2 must be an object with a text"),
        ("a.jsonl", '{"prompt": "A"}\n\n{"prompt"', r"a\.jsonl, line 3 is not JSON"),
        ("a.jsonl", '{"prompt": "A", "heat": 1}', r"line 1: there is no setting 'heat'; there are"),
        ("a.jsonl", '{"prompt": "A", "top_p": 7}', r"line 1: top_p must be .*, not 7"),
        ("a.jsonl", '{"prompt": "A", "top_k": "x"}', r"line 1: top_k must be .*, not 'x'"),
        ("a.jsonl", '{"prompt": "A", "stop": [1]}', r"line 1: stop must be texts .*, not \[1\]"),
        ("a.jsonl", "[" * 100_000, r"line 1 is damaged: it is nested too deeply"),
        ("a.txt", "good\n" + "long " * 200, r"a\.txt, line 2: the prompt has \d+ tokens"),
        ("a.txt", "\n \n", r"a\.txt has no prompt"),
        ("missing.txt", None, r"cannot read .*missing\.txt: No such file"),
    ],
)
def test_what_is_not_possible_is_one_line_with_file_and_number(
    name: str, content: str | None, error: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    words = ["--input", str(tmp_path / name), "--output", str(tmp_path / "made"), *SMALL]
    with pytest.raises(UserError, match=error) as raised:
        main([*words, "--num_tokens", "2"])
    assert "\n" not in str(raised.value)


def test_an_output_of_other_prompts_is_left_alone(tmp_path: Path) -> None:
    given, made = tmp_path / "a.txt", tmp_path / "made.jsonl"
    given.write_text("A\n")
    for content in ('{"prompt": "B"}\n', "my letter\n"):
        made.write_text(content)
        with pytest.raises(UserError, match=r"made\.jsonl, line 1 is no answer to .*a\.txt"):
            main([*SMALL, "--input", str(given), "--output", str(made)])
        assert made.read_text() == content


@pytest.mark.parametrize("words", [["--input", "a"], ["--output", "b"]])
def test_one_file_alone_is_refused(words: list[str]) -> None:
    with pytest.raises(UserError, match="--input and --output belong together"):
        main(words)


def test_two_processes_do_not_write_the_same_answers(tmp_path: Path) -> None:
    import fcntl

    given, made = tmp_path / "a.txt", tmp_path / "made.jsonl"
    given.write_text("A\n")
    with made.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process writes"):
            main([*SMALL, "--input", str(given), "--output", str(made)])


def test_an_interrupt_leaves_whole_lines(tmp_path: Path) -> None:
    given, made = tmp_path / "a.txt", tmp_path / "made.jsonl"
    given.write_text("".join(f"{n} kings\n" for n in range(400)))
    words = command(given, made, "--num_tokens", "30")
    child = start_python(*words, start=subprocess.Popen)
    wait_until(lambda: made.exists() and made.read_bytes().count(b"\n") >= 3)
    os.kill(child.pid, signal.SIGINT)
    assert "Traceback" not in child.communicate(timeout=60)[1]
    assert child.returncode == 130
    found = answers(made)
    assert [a["index"] for a in found] == list(range(len(found)))
