"""The pages of the documentation and their code blocks."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXTEND = ROOT / "docs" / "how-to" / "extend.md"
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LANGUAGES = {"python", "sh", "yaml", "json", "lua", "text"}

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block; `line` is that of its first line of code, counted from 1."""

    page: Path
    line: int
    language: str
    text: str


def page_id(page: Path) -> str:
    """The name of a page in test reports."""
    return str(page.relative_to(ROOT))


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [Block(page, text[: match.start()].count("\n") + 2, match[1], match[2]) for match in _BLOCK.finditer(text)]


def without_blocks(page: Path) -> str:
    """The prose of a page."""
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))


def shell_lines(block: Block) -> list[str]:
    """The commands of a `sh` block: continued lines joined, comment lines and empty ones left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def without_comment(line: str) -> str:
    """A command without the comment behind it."""
    return line.partition(" #")[0].strip()
