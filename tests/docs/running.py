"""Running the code blocks of a page: `volseg` and Python in this process, all else by bash."""

import glob
import json
import logging
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.docs.pages import Block, blocks_of, page_id, shell_lines, without_comment
from volseg.cli import app
from volseg.config import load_config
from volseg.node.config import load_node_config

# Commands of pages that no test runs, and why.
NOT_RUN = {
    "make demo": "installs into .venv; tests/api/test_demo.py runs the demo",
    "make test": "would run this test again",
    "pip install .": "needs the network",
    "volseg demo": "trains for a minute; tests/api/test_demo.py runs it",
    "pip install 'volseg[node]'": "needs the network",
    "volseg node --config node.yaml": "runs until it is stopped; tests/node runs nodes",
    "volseg node status --config node.yaml": "needs a node that has run; tests/node asks for the status",
    "volseg node status --config node.yaml --json": "needs a node that has run; tests/node asks for the status",
    "torchrun --nproc-per-node 2 -m volseg train my_dataset --output runs/two --minutes 20": (
        "starts two processes; tests/api/test_ranks.py does that"
    ),
}
# What a page says of a command that is meant to fail.
EXPECTED = re.compile(r"# exit code (\d+)")
ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")


def run_page(page: Path) -> dict[str, Any]:
    """Run all blocks of a page in the working folder, in order; the names that its Python blocks leave."""
    namespace: dict[str, Any] = {"__name__": "docs"}
    for block in blocks_of(page):
        if block.language == "python":
            # The empty lines make the line numbers of a traceback those of the page.
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)
        elif block.language == "sh":
            for line in shell_lines(block):
                if without_comment(line) not in NOT_RUN:
                    run_line(line, f"{page_id(page)}:{block.line}")
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "yaml":
            check_configuration(block)
    return namespace


def check_configuration(block: Block) -> None:
    """Load a YAML block as a configuration; under the name in its first line it stays there for later commands."""
    first = block.text.splitlines()[0]
    path = Path(first.removeprefix("# ") if first.endswith(".yaml") else "block.yaml")
    path.write_text(block.text, encoding="utf-8")
    if "\npeers:" in block.text:
        load_node_config(path)
    else:
        load_config(path)


def run_line(line: str, place: str) -> None:
    """Run one command and check its exit code, which is 0 unless a comment behind the command names another."""
    expected = int(found[1]) if (found := EXPECTED.search(line)) else 0
    words = shlex.split(line, comments=True)
    with pytest.MonkeyPatch.context() as environment:
        while ASSIGNMENT.fullmatch(words[0]):
            name, _, value = words.pop(0).partition("=")
            environment.setenv(name, value)
        if words[0] == "volseg":
            code, output = _volseg(words[1:])
        else:
            done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
            code, output = done.returncode, done.stdout + done.stderr
    assert code == expected, f"{place}: {line}\nended with exit code {code}, expected {expected}:\n{output}"


def _volseg(words: list[str]) -> tuple[int, str]:
    """Run the command line: patterns of file names are expanded, and `> FILE` takes its standard output."""
    target = words[words.index(">") + 1] if ">" in words else None
    words = words[: words.index(">")] if target else words
    arguments = [name for word in words for name in (sorted(glob.glob(word)) if "*" in word else [word])]
    with _logging_restored():
        done = CliRunner().invoke(app, arguments)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    if target:
        Path(target).write_text(done.stdout, encoding="utf-8")
    return done.exit_code, done.output


@contextmanager
def _logging_restored() -> Iterator[None]:
    """The command line sends log lines to standard error as it is during a call, which is closed after it."""
    logger = logging.getLogger("volseg")
    handlers, level = logger.handlers, logger.level
    try:
        yield
    finally:
        logger.handlers, logger.level = handlers, level
