"""Imports go down only: each part may import parts of a lower rank, and modules of its own package."""

import ast
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "volseg"
RANKS = {
    "version": 0, "text": 0, "system": 0,
    "errors": 0.5, "documents": 0.5,
    "files": 1, "config": 1, "progress": 1,
    "device": 2, "precision": 2, "modelfile": 2,
    "data": 3, "networks": 3,
    "transforms": 4, "postprocessing": 4,
    "auditing": 5, "planning": 5, "training": 5, "inference": 5, "confidence": 5, "evaluation": 5, "report": 5,
    "interop": 5,
    "dicom": 5.5, "finetuning": 5.5, "suspicion": 5.5,
    "losses": 6, "metrics": 6,
    "api": 7,
    "node": 7.5,
    "cli": 8,
    "__main__": 9,
}  # fmt: skip
# Within a package, rooms that others of the same package are built on; what is not listed comes after them.
ROOMS = {
    "data": {"grid": 0, "io": 1, "folds": 2, "dataset_json": 2, "cases": 3},
    "networks": {"kernels": 0, "cuda": 0.5, "cpu": 1},
    "api": {"outputs": 0},
    "training": dict.fromkeys(
        ("budget", "losses", "loop", "moments", "optimisers", "parts", "ranks", "signals", "state"), 0
    ),
    "config": {"values": 0, "network": 1, "plan": 2, "training": 2, "files": 3},
}
MODULES = sorted(PACKAGE.rglob("*.py"))
# SimpleITK and scipy take long to load and only some scans need them; the command line must answer --help at once.
LAZY = {
    "data/io/reading.py", "data/io/read_cost.py", "data/io/folders.py", "data/io/writing.py",
    "api/describe.py", "data/grid/resample.py",
    "evaluation/distances.py", "evaluation/label_distances.py", "evaluation/lesions.py", "evaluation/statistics.py",
    "postprocessing/components.py", "cli/predict.py", "cli/train.py", "cli/evaluate.py", "cli/audit.py",
    "cli/convert.py", "cli/models.py", "cli/machine.py",
    "cli/node.py",
}  # fmt: skip


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add(node.module or "")
    return {name for name in names if name.startswith("volseg.")}


def imported_parts(tree: ast.AST) -> set[str]:
    return {name.split(".")[1] for name in imported_modules(tree)}


def room_rank(part: str, room: str) -> int:
    return ROOMS[part].get(room, 9)


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
def test_rooms_of_a_package_import_down_only(path):
    part, *inner = path.relative_to(PACKAGE).with_suffix("").parts
    if part not in ROOMS or not inner or inner == ["__init__"]:
        return
    for name in imported_modules(ast.parse(path.read_text())):
        _, other, *rest = name.split(".")
        if other == part and rest and rest[0] != inner[0]:
            assert room_rank(part, rest[0]) <= room_rank(part, inner[0]), f"{path} imports {name}"


def test_no_file_is_longer_than_400_lines_and_no_room_has_more_than_12_files():
    rooms = Counter(path.parent for path in MODULES if path.name != "__init__.py")
    assert {str(room.relative_to(PACKAGE)): count for room, count in rooms.items() if count > 12} == {}
    long = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: lines for name, lines in long.items() if lines > 400} == {}


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
