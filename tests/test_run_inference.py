"""`run_inference.py` in one shot: with a scripted text, and on the checkpoint that ships."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import warm_python
from pseudo_terminal import ENVIRONMENT, REAL, SCRIPTED, TESTS, answer, leave, terminal
from reference import TransformersPasses
from run_scripted import PAUSE, load
from serving import generated_text
from transformers import AutoTokenizer, BloomForCausalLM, PreTrainedTokenizerFast

from run_inference import main
from utils.generation import LanguageModel
from utils.setup import run_script

TINY = TESTS.parent / "models" / "bloom_tiny"


def one_shot(
    *arguments: str | bytes,
    stdin: bytes = b"",
    text: str = "some words",
    run: Callable[..., subprocess.CompletedProcess] = warm_python.run,
) -> subprocess.CompletedProcess:
    return run(
        [*SCRIPTED, *arguments],
        input=stdin,
        env={**ENVIRONMENT, "SCRIPTED_TEXT": text},
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
    done = one_shot("--prompt", "A", "--no_stream", "--stop", "xyz", "--stop", "wo", "--stop=--")
    assert (done.returncode, done.stdout) == (0, b"some \n")
    assert b"ended by: stop_string" in done.stderr


def test_a_stop_string_on_the_command_line_is_that_of_the_page() -> None:
    done = one_shot(
        "--prompt", "A", "--stop", r"\n--- END-OF TEXT", text="one\n--- END-OF TEXT two"
    )
    assert (done.returncode, done.stdout) == (0, b"one\n")


def test_a_prompt_may_begin_with_hyphens() -> None:
    done = one_shot("--json", "--prompt", "--well-known fact")
    assert json.loads(done.stdout)["prompt"] == "--well-known fact"


def test_json_has_the_text_its_ids_and_the_settings_that_repeat_it(
    capsys: pytest.CaptureFixture[str],
    model: BloomForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    passes = TransformersPasses(model)

    def result(*more: str) -> dict:
        arguments = "--prompt=A --num_tokens=12 --top_k=90 --temperature=1.5 --stop=xyz --json"
        loaded = LanguageModel(passes, tokenizer)
        assert main([*arguments.split(), *more], load=lambda config: loaded) == 0
        output, errors = capsys.readouterr()
        result = json.loads(output)
        assert f"seed {result['settings']['seed']}, " in errors
        timed = ("time_to_first_token", "tokens_per_second", "prompt_tokens_per_second")
        assert all(result.pop(name) > 0 for name in timed)
        return result

    first = result()
    seed = first["settings"]["seed"]
    assert result("--seed", str(seed)) == first
    text = tokenizer.decode(first["ids"], skip_special_tokens=True)
    assert first == {
        "prompt": "A",
        "text": text,
        "tokens": 12,
        "ids": first["ids"],
        "finish_reason": "budget",
        "prompt_tokens": 1,
        "settings": {
            "temperature": 1.5,
            "top_k": 90,
            "top_p": 1.0,
            "repetition_penalty": 1.0,
            "seed": seed,
            "min_p": 0.0,
            "typical_p": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "num_tokens": 12,
            "stop": ["xyz"],
        },
    }
    assert len(first["ids"]) == 12


@pytest.mark.parametrize(
    ("arguments", "stdin", "error"),
    [
        (["--prompt", "A", "--top_p", "1.5"], b"", "top_p must be .* to 1 .*, not 1.5"),
        (
            ["--prompt", "A", "--num_tokens", "0"],
            b"",
            "num_tokens must be a whole number from 1 up, not 0",
        ),
        (["--prompt", "A", "--temperature", "hot"], b"", ".*temperature.*hot.*"),
        (["--prompt", "A", "--stop", ""], b"", "stop must be texts that are not empty, .*"),
        (["--prompt", "A", "--heads", "3"], b"", "hidden_size must .*"),
        (["--prompt", ""], b"", "the prompt is empty: .*"),
        ([], b"", "the prompt is empty: .*"),
        ([], b"caf\xe9", "standard input is not UTF-8 at byte 3"),
        (["--prompt", "ЖЖ" * 300], b"", r"the prompt has \d+ tokens.* holds 512.*"),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_status_2(
    arguments: list[str],
    stdin: bytes,
    error: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    monkeypatch.setenv("SCRIPTED_TEXT", "some words")
    with pytest.raises(SystemExit) as ended:
        run_script(lambda: main(arguments, load=load))
    output, errors = capsys.readouterr()
    assert (ended.value.code, output) == (2, "")
    assert re.fullmatch(f"error: {error}\n", errors)


def test_bad_input_of_a_process_is_one_line_on_stderr_and_status_2() -> None:
    done = one_shot("--prompt", b"caf\xe9", run=subprocess.run)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"error: the prompt is no valid text at character 3\n"


def test_ctrl_c_ends_one_shot_with_status_130_and_no_traceback() -> None:
    with warm_python.Popen(
        [*SCRIPTED, "--prompt", "A cat"],
        env={**ENVIRONMENT, "SCRIPTED_TEXT": f"begun{PAUSE}"},
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
    with warm_python.Popen(
        [*SCRIPTED, "--prompt", "A cat"],
        env={**ENVIRONMENT, "SCRIPTED_TEXT": "some words"},
        stdin=subprocess.DEVNULL,
        stdout=write,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(write)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (141, b"")


def test_the_shipped_checkpoint_answers_at_the_interactive_prompt(tmp_path: Path) -> None:
    prompt = "The king said"
    model = BloomForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    text = generated_text(model, AutoTokenizer.from_pretrained(TINY), prompt, 12)
    with terminal(tmp_path, program=REAL) as child:
        answer(child, prompt, "", "", "12")
        child.expect_exact(f"{prompt}\x1b[0m" + text.replace("\n", "\r\n") + "\r\n")
        child.expect(r"tokens, first after .* ended by: (budget|end_of_text)")
        leave(child)
