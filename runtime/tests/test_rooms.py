"""The rooms of the runtime: which package may import which, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

RUNTIME = Path(__file__).resolve().parents[1]
OWN = ("popxl", "popxl_addons", "popxl_shared", "popxl_torch", "popdist")


def sources(package: str) -> list[Path]:
    return sorted((RUNTIME / Path(*package.split("."))).rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(RUNTIME).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """Each module of ours that a file imports, and whether it does so inside a function."""
    tree = ast.parse(path.read_text())
    late = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = str(node.module or "")
            if node.level:
                package = name_of(path).split(".")
                package = package if path.name == "__init__.py" else package[:-1]
                upper = package[: len(package) - node.level + 1]
                base = ".".join([*upper, base] if base else upper)
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] in OWN:
                yield name, id(node) in late


def stands_in(module: str, *rooms: str) -> bool:
    return any(f"{module}.".startswith(f"{room}.") for room in rooms)


@pytest.mark.parametrize("path", sources("popxl"), ids=name_of)
def test_the_front_end_reaches_what_runs_it_only_where_a_session_is_made(path):
    for module, late in imported(path):
        if stands_in(module, "popxl_torch"):
            assert (path.name, late) == ("session.py", True), f"{name_of(path)} imports {module}"
        assert not stands_in(module, "popxl_addons"), f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", sources("popxl_addons"), ids=name_of)
def test_the_addons_stand_on_popxl_alone_and_on_its_public_names(path):
    for module, _ in imported(path):
        assert not stands_in(module, "popxl_torch"), f"{name_of(path)} imports {module}"
        private = module.startswith("popxl.") and "._" in module
        assert not private, f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", sources("popxl_torch"), ids=name_of)
def test_what_runs_programs_knows_nothing_of_the_addons(path):
    for module, _ in imported(path):
        assert not stands_in(module, "popxl_addons"), f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", sources("popxl_shared"), ids=name_of)
def test_formats_of_weights_stand_on_nothing(path):
    assert [m for m, _ in imported(path) if not stands_in(m, "popxl_shared")] == []


BACK_ENDS = [f"popxl_torch.backends.{name}" for name in ("reference", "cpu", "cuda")]


@pytest.mark.parametrize("path", sources("popxl_torch.backends"), ids=name_of)
def test_back_ends_do_not_import_each_other(path):
    """But for the place where one is chosen."""
    own = [room for room in BACK_ENDS if stands_in(name_of(path), room)]
    for module, _ in imported(path):
        others = [room for room in BACK_ENDS if stands_in(module, room) and room not in own]
        assert not others or path.name == "chosen.py", f"{name_of(path)} imports {module}"


@pytest.mark.parametrize(
    "path",
    [p for room in ("analysis", "fusion", "lowering") for p in sources(f"popxl_torch.{room}")],
    ids=name_of,
)
def test_what_comes_before_a_back_end_knows_none_but_the_reference(path):
    for module, _ in imported(path):
        assert not stands_in(module, *BACK_ENDS[1:]), f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", sources("popxl_torch.analysis"), ids=name_of)
def test_the_analysis_of_graphs_needs_no_torch(path):
    for module, _ in imported(path):
        assert stands_in(module, "popxl", "popxl_torch.analysis"), f"{path.name} imports {module}"
