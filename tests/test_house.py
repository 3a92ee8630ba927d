"""The house: imports go down its floors, and no room uses another's private names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from config import REPOSITORY

FLOORS: list[set[str]] = [
    {"inference", "run_inference", "run_inference_gradio", "generate_memmap", "serve_replicas"},
    {"utils.serving", "utils.benchmark", "utils.terminal", "utils.offline"},
    {"utils.planning", "utils.writing"},
    {"utils.generation"},
    {"utils.checkpoints"},
    {"utils.setup"},
    {"utils.distributed", "utils.our_runtime"},
    {"modelling"},
    {"config"},
    {"utils.outside", "utils.streams"},
    {"utils.escaping"},
    {"popdist", "popxl_addons", "popxl_torch"},
    {"popxl"},
    {"popxl_shared"},
]
"""From the top: what stands on a floor imports from its own room and from floors below."""

FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
SOURCES = [
    path
    for name in ("config", "modelling", "utils")
    for path in sorted((REPOSITORY / name).rglob("*.py"))
] + [REPOSITORY / f"{script}.py" for script in sorted(FLOORS[0])]


def room(module: str) -> str:
    """`utils.serving` for `utils.serving.page.words`, `config` for `config.presets`."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "utils" else parts[0]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """Each module that a file imports, and the name out of it; '' for the module itself."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            for name in node.names:
                of_package = (REPOSITORY / str(node.module).replace(".", "/")).is_dir()
                is_module = of_package and node.module == "utils"
                yield (f"utils.{name.name}", "") if is_module else (str(node.module), name.name)
        elif isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, ""


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_a_file_imports_only_from_its_own_room_and_the_floors_below(path):
    own = room(module_of(path))
    if own == "utils":
        own = "utils.setup"  # its package, which imports nothing
    for module, name in imported(path):
        other = room(module)
        if other == own or other not in FLOOR_OF:
            continue
        assert FLOOR_OF[other] > FLOOR_OF[own], f"{own} imports {module}, which stands above it"
        assert not name.startswith("_"), f"{own} imports the private name {module}.{name}"


def test_every_room_of_the_house_stands_on_a_floor():
    rooms = {room(module_of(path)) for path in SOURCES} - {"utils"}
    assert rooms <= set(FLOOR_OF)


OURS = ("popxl_torch.", "popdist.")
"""Modules that another runtime does not have; `popdist` itself is the vendor's."""

DECLARES = "popxl_torch.composite"
"""What the application may use of ours everywhere: elsewhere it changes nothing."""

EXTRAS = {"fill_variable_data", "traffic"}
"""Methods and properties of sessions that it does not have."""


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_what_exists_only_with_our_runtime_is_reached_through_one_module(path):
    if module_of(path) in ("utils.our_runtime", "utils.distributed"):
        return
    for module, name in imported(path):
        whole = f"{module}.{name}".removesuffix(".")
        ours = whole.startswith(OURS) and whole != DECLARES
        assert not ours, f"{path.name} imports {whole}: see utils/our_runtime.py"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr not in EXTRAS, f"{path.name}:{node.lineno} .{node.func.attr}()"
        elif isinstance(node, ast.Attribute):
            assert node.attr != "traffic", f"{path.name}:{node.lineno} .traffic"
