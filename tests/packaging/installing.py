"""Fresh environments, and copies of the checkout to build and install."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import setuptools

ROOT = Path(__file__).parent.parent.parent
# What a build reads.
PIECES = ("pyproject.toml", "README.md", "LICENSE", "volseg")


def run(*command: object, **options) -> "subprocess.CompletedProcess[str]":
    """Run a command without the import path of the tests."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= options.pop("environment", {})
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, env=environment, **options)


def pip(*arguments: object, python: Path | str = sys.executable, **options) -> "subprocess.CompletedProcess[str]":
    """Run the pip of the tests, for another interpreter if one is given."""
    return run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, *arguments, **options)


def install(python: Path, *arguments: object, **options) -> None:
    """Install into an environment; what pip says is the failure. Compiling all of torch would take the longest."""
    done = pip("install", "--no-compile", *arguments, python=python, **options)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def copy_checkout(folder: Path) -> Path:
    """A copy to build in, since a build writes beside the sources."""
    folder.mkdir()
    for name in PIECES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def fresh_environment(folder: Path) -> Path:
    """The interpreter of a new environment that holds no package."""
    venv.create(folder, symlinks=True)
    return folder / "bin" / "python"


def setuptools_alone(folder: Path) -> dict[str, str]:
    """Environment variables that lend another interpreter the setuptools of the tests, and nothing else of theirs."""
    folder.mkdir()
    packages = Path(setuptools.__file__).parent.parent
    for pattern in ("setuptools", "setuptools-*.dist-info", "_distutils_hack"):
        for path in packages.glob(pattern):
            (folder / path.name).symlink_to(path)
    return {"PYTHONPATH": str(folder)}


def index_refusal(folder: Path) -> str:
    """Why pip reaches no package index, or "" where it does."""
    patience = ("--retries", "1", "--timeout", "20")
    done = pip("download", *patience, "--quiet", "--no-deps", "--dest", folder, "setuptools>=77.0.3")
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason given"])[-1]
