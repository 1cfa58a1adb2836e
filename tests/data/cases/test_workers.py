"""Where processes that prepare batches can be started, by scripts in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline import environment

ROOT = str(Path(__file__).parents[3])
ASK = """
import logging, multiprocessing, sys, threading
from volseg.data.cases.workers import possible_workers
logging.basicConfig()

def ask(sent=1):
    print(possible_workers(3, sent))
"""
SPAWN = "multiprocessing.set_start_method(sys.argv[1])\n"
GUARD = "if __name__ == '__main__':\n"
SCRIPTS = {
    "guarded": (f"{GUARD}    {SPAWN}    ask()\n", ("3", "3", "3")),
    "guarded main function": (f"def main():\n    {SPAWN}    ask()\n{GUARD}    main()\n", ("3", "3", "3")),
    "guarded, from a thread": (
        f"{GUARD}    {SPAWN}    t = threading.Thread(target=ask); t.start(); t.join()\n",
        ("3", "3", "3"),
    ),
    "unguarded": (f"{SPAWN}ask()\n", ("3", "0", "0")),
    "unguarded main function": (f"def main():\n    ask()\n{SPAWN}main()\n", ("3", "0", "0")),
    "another condition": (f"{SPAWN}if True:\n    ask()\n", ("3", "0", "0")),
    "what cannot be sent": (f"{GUARD}    {SPAWN}    ask(lambda: 1)\n", ("3", "0", "0")),
    "daemon": (
        f"{GUARD}    {SPAWN}    p = multiprocessing.Process(target=ask, daemon=True); p.start(); p.join()\n",
        ("0", "0", "0"),
    ),
}  # fmt: skip


def python(*arguments):
    where = {**environment(), "PYTHONPATH": ROOT}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=where, timeout=60
    )


@pytest.mark.parametrize(("script", "expected"), SCRIPTS.values(), ids=SCRIPTS)
def test_processes_are_started_only_where_they_can_be(tmp_path, script, expected):
    path = tmp_path / "script.py"
    path.write_text(ASK + script)
    for method, workers in zip(("fork", "spawn", "forkserver"), expected, strict=True):
        done = python(str(path), method)
        assert done.stdout.strip() == workers, done.stderr
        assert ("Batches are prepared without child processes" in done.stderr) == (workers == "0")


@pytest.mark.parametrize("arguments", [["-c", f"{ASK}{SPAWN}ask()"], ["-m", "package"]])
def test_code_without_a_file_and_packages_are_not_imported_by_children(tmp_path, arguments, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__main__.py").write_text(f"{ASK}{SPAWN}ask()")
    done = python(*arguments, "spawn")
    assert done.stdout.strip() == "3", done.stderr


def test_a_child_that_imports_its_script_says_so_before_it_trains(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(
        "import multiprocessing\n"
        "from volseg.data.cases.workers import require_main_process\n"
        "require_main_process()\n"
        "if __name__ == '__main__':\n"
        "    child = multiprocessing.get_context('spawn').Process(target=print)\n"
        "    child.start()\n"
        "    child.join()\n"
        "    print(child.exitcode)\n"
    )
    done = python(str(path))
    assert done.stdout.strip() == "1"
    assert "UsageError: The script that trains is imported by its own child processes" in done.stderr
