"""An installation as a container has it, in a namespace with the limits of one; no container engine is needed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.installing import ROOT, copy_checkout, pip

# Within a mount namespace of its own: what is written to stays writable, all else becomes read-only.
SETUP = """
set -e
mount --bind "$WORK/output" "$WORK/output"
if [ "$TMP_SIZE" ]; then mount -t tmpfs -o size=$TMP_SIZE,mode=777 tmpfs "$WORK/tmp"
else mount --bind "$WORK/tmp" "$WORK/tmp"; fi
mount -t tmpfs -o size=$SHM_SIZE,mode=777 tmpfs /dev/shm
mount -o remount,ro,bind /
umask $UMASK
exec unshare --user --map-user=10001 --map-group=10001 env -i PATH=/usr/bin:/bin PYTHONPATH="$WORK/app" \
    PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 TMPDIR="$WORK/tmp" \
    VOLSEG_INPUT="$WORK/input" VOLSEG_OUTPUT="$WORK/output" "$@"
"""


def contained(
    work: Path, *command: object, shm: str = "64m", tmp: str = "", umask: str = "022", **options
) -> "subprocess.CompletedProcess[str]":
    """Run a command within the limits.

    Args:
        work: has the folders app, input, output and tmp.
        command: the command.
        shm: size of /dev/shm.
        tmp: size of the temporary folder; empty for that of the disk.
        umask: of the process.
        options: of `subprocess.run`.
    """
    root = [] if os.geteuid() == 0 else ["--map-root-user"]
    limits = {"WORK": str(work), "SHM_SIZE": shm, "TMP_SIZE": tmp, "UMASK": umask, "PATH": os.environ["PATH"]}
    return subprocess.run(
        ["unshare", *root, "--mount", "--net", "sh", "-c", SETUP, "sh", *map(str, command)],
        capture_output=True, text=True, check=False, env=limits, cwd="/", **options,
    )  # fmt: skip


def installed(folder: Path) -> Path:
    """A folder with an installation in `app`, and input, output and tmp; skips where namespaces are not allowed."""
    for name in ("input", "output", "tmp"):
        (folder / name).mkdir()
    if not shutil.which("unshare"):
        pytest.skip("there is no unshare (util-linux)")
    if (done := contained(folder, "true")).returncode:
        pytest.skip(f"namespaces are not allowed here: {done.stderr.strip()}")
    checkout = copy_checkout(folder / "checkout")
    done = pip("install", "--no-deps", "--no-build-isolation", "--no-index", "--target", folder / "app", checkout)
    assert done.returncode == 0, done.stderr
    shutil.copy(ROOT / "deploy" / "entrypoint.py", folder / "app")
    return folder


def volseg(work: Path, *arguments: object, **limits) -> "subprocess.CompletedProcess[str]":
    """Run the command line of the installation within the limits."""
    return contained(work, sys.executable, "-m", "volseg", *arguments, **limits)
