"""An editable install, seen from the folder above the clone."""

from pathlib import Path

import pytest

from tests.packaging.installing import copy_checkout, fresh_environment, install, run, setuptools_alone
from volseg import __version__


@pytest.mark.slow
def test_the_folder_of_a_clone_named_volseg_does_not_hide_the_package(tmp_path: Path) -> None:
    clone = copy_checkout(tmp_path / "volseg")
    python = fresh_environment(tmp_path / "environment")
    lent = setuptools_alone(tmp_path / "lent")
    install(python, "--no-deps", "--no-build-isolation", "--editable", clone, environment=lent)
    done = run(python, "-c", "import volseg; print(volseg.__file__); print(volseg.__version__)", cwd=tmp_path)
    assert done.stdout.splitlines() == [str(clone / "volseg" / "__init__.py"), __version__], done.stderr
