"""The pages on tensor parallelism and on adding a model say what the program does."""

from __future__ import annotations

import re
import sys

import pytest
import yaml

from config import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGE = (DOCS / "tensor-parallelism.md").read_text()

sys.path.insert(0, str(DOCS))
import tensor_parallelism  # noqa: E402 - found just above
import tensor_parallelism_pictures  # noqa: E402
from popxl_torch.analysis.cost import cost_of  # noqa: E402


@pytest.fixture(scope="module")
def tables() -> dict[str, str]:
    return tensor_parallelism.tables()


@pytest.mark.parametrize("name", ["shards", "sums", "pass"])
def test_the_page_has_the_tables_that_the_program_gives(name, tables):
    assert tables[name] in PAGE, "run docs/tensor_parallelism.py and copy what it prints"


@pytest.mark.parametrize("parts", [2, 4])
def test_replicas_of_the_grid_are_numbered_as_the_page_says(parts):
    numbers = tensor_parallelism.grid(tensor_parallelism.program(parts)[1])
    assert numbers == [[i1 * parts + i2 for i2 in range(parts)] for i1 in range(parts)]


def test_a_layers_exchanges_are_those_that_a_pass_costs(tables):
    """Beside the layers: two norms, the embedding's sum and the head's."""
    config, session = tensor_parallelism.program()
    of_a_layer = [step for step in tensor_parallelism.steps(config) if step.groups]
    cost = cost_of(next(iter(session.pass_graphs.values())))
    assert cost.collective_calls == len(of_a_layer) * config.model.layers + 4


def test_the_preset_of_the_page_on_models_is_the_one_in_use():
    page = (DOCS / "adding-a-model.md").read_text()
    (text,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    presets = yaml.safe_load((REPOSITORY / "config" / "inference.yml").read_text())
    assert yaml.safe_load(text) == {"gpt2": presets["gpt2"]}


def test_the_pages_example_runs():
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    exec(compile(code, "docs/tensor-parallelism.md", "exec"), {})


def test_the_pictures_are_drawn(tmp_path):
    tensor_parallelism_pictures.draw(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == set(re.findall(r"\.\./img/(\S+\.svg)", PAGE))
