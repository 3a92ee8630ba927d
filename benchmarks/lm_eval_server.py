"""Evaluate a checkpoint with lm-evaluation-harness: through the server, and by its `hf` model.

    pip install -r requirements-eval.txt
    python benchmarks/lm_eval_server.py --documents 60

The tasks are made here of a text: which of four words comes next (log-likelihoods of continuations,
compared), and how likely whole paragraphs are (rolling log-likelihoods). Nothing is downloaded. The
status is 1 where a figure of the two differs by more than rounding.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "runtime")]
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

from config import load_config  # noqa: E402 - found just above
from utils.generation import Engine, load  # noqa: E402
from utils.serving.about import About  # noqa: E402
from utils.serving.service import Service  # noqa: E402
from utils.serving.web_server import serving  # noqa: E402

ROUNDING = 1e-4
"""Between two figures, as a share: sums of hundreds of float32 log-likelihoods."""

CHOICES = 4
TASKS = {
    "heldout_words": """\
task: heldout_words
dataset_path: json
dataset_kwargs: {data_files: {test: WORDS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "heldout_text": """\
task: heldout_text
dataset_path: json
dataset_kwargs: {data_files: {test: PARAGRAPHS}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
}


def write_tasks(folder: Path, text: str, documents: int) -> list[str]:
    """Tasks of a text in a folder; their names."""
    lines = [line.replace("</s>", "").strip() for line in text.splitlines()]
    paragraphs = [line for line in lines if 20 <= len(line.split()) <= 120]
    if len(paragraphs) < CHOICES:
        raise SystemExit(f"error: the text must have {CHOICES} lines of 20 to 120 words")
    chosen = random.Random(0).sample(paragraphs, min(documents, len(paragraphs)))
    words = [_question(paragraph, chosen) for paragraph in chosen]
    files = {"WORDS": words, "PARAGRAPHS": [{"text": paragraph} for paragraph in chosen]}
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, task in TASKS.items():
        for file in files:
            task = task.replace(f" {file}", f" {folder / file}.jsonl")
        (folder / f"{name}.yaml").write_text(task)
    return list(TASKS)


def _question(paragraph: str, all_of_them: list[str]) -> dict[str, Any]:
    """The beginning of a paragraph, its next words, and the next words of three others."""
    choose = random.Random(paragraph)
    others = choose.sample([p for p in all_of_them if p != paragraph], CHOICES - 1)
    words = paragraph.split()
    choices = [" ".join(p.split()[12:15]) for p in (paragraph, *others)]
    order = choose.sample(range(CHOICES), CHOICES)
    return {
        "context": " ".join(words[:12]),
        "choices": [choices[place] for place in order],
        "answer": order.index(0),
    }


def evaluate(model: str, arguments: dict[str, Any], folder: Path, names: list[str]) -> dict:
    """The figures of tasks: `{task: {metric: value}}`."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    found = simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=names,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        batch_size=4,
        bootstrap_iters=0,
    )
    return {
        task: {
            name.partition(",")[0]: value
            for name, value in results.items()
            if isinstance(value, float) and "stderr" not in name
        }
        for task, results in found["results"].items()
    }


def both(preset: str, text: str, documents: int) -> tuple[dict, dict]:
    """The figures through the server, and those of lm-evaluation-harness's own model."""
    config = load_config(preset, {"score_tokens": 64, "batch_size": 4, "precision": "float32"})
    checkpoint = str(REPOSITORY / config.model.hf_model)
    length = config.model.sequence_length
    with tempfile.TemporaryDirectory(prefix="lm-eval-") as name:
        folder = Path(name)
        os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
        names = write_tasks(folder, text, documents)
        loaded = load(config)
        about = About.of(config)
        with Engine(loaded.passes) as engine:
            service = Service(engine, loaded.tokenizer, about=about)
            with serving(service, page=False) as address:
                through = {
                    "model": about.name,
                    "base_url": f"{address}/v1/completions",
                    "tokenizer": checkpoint,
                    "tokenizer_backend": "huggingface",
                    "max_length": length,
                    "num_concurrent": 2,
                }
                served = evaluate("local-completions", through, folder, names)
        own = {"pretrained": checkpoint, "dtype": "float32", "max_length": length - 1}
        return served, evaluate("hf", {**own, "device": "cpu"}, folder, names)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", default="bloom_tiny", help="a preset of a local checkpoint")
    parser.add_argument(
        "--text", type=Path, default=REPOSITORY / "models" / "bloom_tiny" / "heldout.txt"
    )
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):  # where the harness reports
        served, own = both(options.config, options.text.read_text(), options.documents)
    if options.json:
        print(json.dumps({"server": served, "hf": own}))
        return 0
    differ = 0
    print(f"{'task':16}{'metric':20}{'server':>16}{'hf':>16}")
    for task, figures in own.items():
        for metric, value in figures.items():
            found = served[task][metric]
            differs = abs(found - value) > ROUNDING * abs(value)
            differ += differs
            print(f"{task:16}{metric:20}{found:16.8f}{value:16.8f}{'  DIFFERS' * differs}")
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
