"""Which programs are run, and how."""

from __future__ import annotations

from dataclasses import dataclass

from foreign.environment import DRIVERS

ROTARY = DRIVERS / "rotary_halves.py"
LAYERS = "tests/integration/layers"


@dataclass(frozen=True)
class Group:
    """Tests of one public program.

    `folder` is a folder of the clones, which is copied, so that nothing is written there; `start`
    is where in it tests are run, `paths` what is importable beside that, and `tests` what pytest is
    given. `copied` is what must lie beside the folder.
    """

    name: str
    folder: str
    tests: tuple[str, ...]
    start: str = "."
    paths: tuple[str, ...] = ()
    substitutes: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()


def _example(name: str, folder: str, *tests: str, rotary: bool = False) -> Group:
    substitutes = (f"modelling.rotary_pos_embed.rotary_pos_embed={ROTARY}",) if rotary else ()
    return Group(name, f"examples/{folder}", tests, paths=(".",), substitutes=substitutes)


def _driver(file: str) -> str:
    return str(DRIVERS / file)


GROUPS = (
    _example("BLOOM: tests", "nlp/bloom/popxl", "tests"),
    _example("BLOOM: checkpoint", "nlp/bloom/popxl", _driver("bloom_checkpoint.py")),
    _example("LLaMA: tests", "nlp/llama/popxl", "tests", rotary=True),
    _example("LLaMA: checkpoint", "nlp/llama/popxl", _driver("llama_checkpoint.py"), rotary=True),
    _example("Dolly: tests", "nlp/dolly/popxl", "tests", rotary=True),
    _example("Dolly: checkpoint", "nlp/dolly/popxl", _driver("dolly_checkpoint.py"), rotary=True),
    _example("GPT-J: tests", "nlp/gpt_j/popxl", "tests"),
    _example("GPT-J: checkpoint", "nlp/gpt_j/popxl", _driver("gptj_checkpoint.py")),
    _example("T5: tests", "nlp/t5/popxl", "tests"),
    _example("T5: checkpoint", "nlp/t5/popxl", _driver("t5_checkpoint.py")),
    _example("GPT-3 2.7B: tests", "nlp/gpt3_2.7B/popxl", "tests"),
    _example("GPT-3 2.7B: checkpoint", "nlp/gpt3_2.7B/popxl", _driver("gpt3_checkpoint.py")),
    _example("GPT-3 175B: tests", "nlp/gpt3_175B/popxl", "tests"),
    _example("BERT: tests", "nlp/bert/popxl", "tests"),
    _example("BERT: checkpoint", "nlp/bert/popxl", _driver("bert_checkpoint.py")),
    _example("MAGMA: tests", "multimodal/magma/popxl", "tests"),
    Group("popxl-addons", "popxl-addons/tests", (".",), paths=(".", "integration")),
    Group("popart: integration", "popart/tests/integration/popxl", (".",), paths=(".",)),
    Group("popart: unit", "popart/tests/unittests/python/popxl", (".",), paths=("ops",)),
    Group(
        "user guide",
        "popart/docs/popxl/files",
        ("tests",),
        paths=(".",),
        substitutes=(f"leaky_relu_op.leaky_relu={DRIVERS / 'leaky_relu.py'}",),
        copied=("popart/docs/shared/files",),
    ),
    Group(
        "tutorials",
        "examples/tutorials/tutorials/popxl",
        (".",),
        copied=("examples/tutorials/utils",),
        paths=("../../utils",),
    ),
)
