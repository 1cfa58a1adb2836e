"""Imports go down only: each part may import parts of a lower rank, and modules of its own package."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "volseg"
RANKS = {
    "version": 0, "errors": 0,
    "files": 1, "config": 1, "progress": 1, "heap": 1,
    "device": 2, "precision": 2, "modelfile": 2,
    "data": 3, "networks": 3,
    "transforms": 4,
    "planning": 5, "training": 5, "inference": 5, "evaluation": 5, "report": 5, "interop": 5,
    "api": 6,
    "console": 7,
    "cli": 8,
    "__main__": 9,
}  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))
# SimpleITK and scipy take long to load and only some scans need them; the command line must answer --help at once.
LAZY = {
    "data/reading.py", "data/sizes.py", "data/writing.py", "data/resample.py", "inference/components.py", "cli.py",
}  # fmt: skip


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add(node.module or "")
    return {name.split(".")[1] for name in names if name.startswith("volseg.")}


def test_every_part_has_a_rank():
    assert {part_of(path) for path in MODULES} - {"__init__"} == set(RANKS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    here = part_of(path)
    if here == "__init__":
        return
    for other in imported_parts(ast.parse(path.read_text())):
        assert other == here or RANKS[other] < RANKS[here], f"{path} imports {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_stand_at_the_top(path):
    if str(path.relative_to(PACKAGE)) in LAZY:
        return
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    inside = [node for one in functions for node in ast.walk(one) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not inside, f"{path} imports inside a function"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_pipelines_import_monai(path):
    if part_of(path) == "transforms":
        return
    tree = ast.parse(path.read_text())
    roots = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    roots |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "monai" not in roots
