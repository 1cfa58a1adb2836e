"""Mutants that change nothing a test on a machine without a GPU could notice, each with the reason."""

from typing import Any

# File of the package, the text that is replaced, what takes its place, and why it means the same.
EQUIVALENT: tuple[tuple[str, str, str, str], ...] = (
    (
        "data/cases/progressive_patches.py",
        "zip(full, divisor, strict=True)",
        "(zip(full, divisor))",
        "both have three entries; strict only guards against a fault of the caller",
    ),
    (
        "data/grid/shear.py",
        "zip(slices, stack, nearest, strict=True)",
        "(zip(slices, stack, nearest))",
        "all three have an entry per slice; strict only guards against a fault of the caller",
    ),
    (
        "data/cases/cache.py",
        '_part(stem, "json").read_text(encoding="utf-8")',
        "(_part(stem, 'json').read_text())",
        "`write_json` writes ASCII, which all encodings of text have",
    ),
    ("api/segmenter.py", "Path | bool | None", "(Path | bool)", "a type, which only the type checker reads"),
    (
        "training/optimisers.py",
        "torch.eye(len(wide), device=wide.device)",
        "(torch.eye(len(wide)))",
        "the same on a CPU; on a GPU the first step of tests/test_gpu.py fails by it",
    ),
    (
        "networks/cpu/winograd.py",
        "2",
        "3",
        "any different points give the same convolution; these only lose less precision",
    ),
)


def reason_of(line: dict[str, Any]) -> str | None:
    """Why the mutant of an outcome means the same; None if it does not."""
    for file, old, new, reason in EQUIVALENT:
        if (f"volseg/{file}", old, new) == (line["file"], line["old"], line["new"]):
            return reason
    return None
