"""Locks, memory and cores, with and without what Linux has; and the whole package without what Windows lacks."""

import errno
import getpass
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.pipeline import write_model
from volseg import system
from volseg.system import file_lock

GIB = 2**30
HOLD = """
import sys
from pathlib import Path
from volseg.system import file_lock
with file_lock(Path(sys.argv[1])) as sure:
    print("held", sure, flush=True)
    sys.stdin.read()
"""
# What Windows lacks: modules, and functions of os, signal and time.
WITHOUT = """
import importlib.abc, os, pkgutil, signal, sys, time

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
for module in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules.pop(module, None)
import multiprocessing, socket, torch, nibabel, tempfile
for name in ("sysconf", "sched_getaffinity", "getuid", "geteuid", "uname", "statvfs", "mkfifo", "fchmod",
             "posix_fallocate", "getpgid", "killpg", "setsid", "register_at_fork", "O_NOFOLLOW", "O_DIRECTORY"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGHUP", "SIGKILL", "SIGALRM", "SIGUSR1", "SIGPIPE", "pthread_sigmask", "setitimer"):
    if hasattr(signal, name):
        delattr(signal, name)
"""


def test_a_lock_keeps_other_processes_out_and_ends_with_its_process(tmp_path):
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=-1, stdout=-1, text=True) as holder:
        assert holder.stdout.readline() == "held True\n"
        with pytest.raises(BlockingIOError), file_lock(path):
            pass
        holder.kill()
        holder.wait()
        with file_lock(path) as sure:
            assert sure


def test_a_lock_keeps_other_threads_out_and_survives_their_attempts(tmp_path):
    path, refused = tmp_path / "lock", []

    def attempt() -> None:
        try:
            with file_lock(path):
                pass
        except BlockingIOError as error:
            refused.append(error)

    with file_lock(path):
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
        assert len(refused) == 1
        # Closing any handle of the file would have given the lock of the process away.
        done = subprocess.run([sys.executable, "-c", HOLD, path], stdin=subprocess.DEVNULL, capture_output=True)
        assert done.returncode == 1
        assert b"BlockingIOError" in done.stderr
    with file_lock(path) as sure:
        assert sure


def test_a_lock_whose_file_was_removed_in_between_is_taken_anew(tmp_path, monkeypatch):
    """Its holder removes the file before it lets go: a lock of that file would keep nobody out."""
    path, lockf = tmp_path / "lock", system.fcntl.lockf

    def removed_meanwhile(*arguments):
        monkeypatch.setattr(system.fcntl, "lockf", lockf)
        path.unlink()
        return lockf(*arguments)

    monkeypatch.setattr(system.fcntl, "lockf", removed_meanwhile)
    with file_lock(path):
        done = subprocess.run(
            [sys.executable, "-c", HOLD, path], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        assert b"BlockingIOError" in done.stderr


def test_a_lock_leaves_content_and_links_alone(tmp_path):
    victim, link = tmp_path / "victim", tmp_path / "lock"
    victim.write_text("content")
    with file_lock(victim):
        assert victim.read_text() == "content"
    link.symlink_to(victim)
    with pytest.raises(OSError) as refused, file_lock(link):
        pass
    assert refused.value.errno == errno.ELOOP
    assert victim.read_text() == "content"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_is_no_other_process(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(system.fcntl, "lockf", refuse)
    with file_lock(tmp_path / "lock") as sure:
        assert not sure


def test_a_system_without_either_kind_of_lock_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(system, "fcntl", None)
    with file_lock(tmp_path / "lock") as sure:
        assert not sure


class WindowsLocks:
    """msvcrt as Windows has it: one process holds a byte of a file."""

    LK_NBLCK = 2

    def __init__(self):
        self.held = False

    def locking(self, handle, mode, size):
        os.fstat(handle)
        assert (mode, size) == (2, 1)
        if self.held:
            raise OSError(errno.EACCES, "Permission denied")
        self.held = True


def test_windows_locks_a_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(system, "fcntl", None)
    monkeypatch.setattr(system, "msvcrt", WindowsLocks())
    with file_lock(tmp_path / "lock") as sure:
        assert sure
    with pytest.raises(BlockingIOError), file_lock(tmp_path / "lock"):
        pass


def test_memory_is_that_of_the_process_and_not_of_its_parent():
    ballast = np.ones(GIB, np.uint8)
    code = "from volseg import system; import torch; print(system.resident_bytes(), system.peak_memory_bytes())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    now, peak = map(int, printed.split())
    assert 1 << 26 < now <= peak < ballast.nbytes


def test_memory_without_the_files_of_linux(monkeypatch):
    """The peak of `getrusage`, kilobytes; where there is none either, unknown."""
    now = system.resident_bytes()
    monkeypatch.setattr(system, "_stated", lambda *_: None)
    assert system.resident_bytes() == system.peak_memory_bytes() >= now > 1 << 26
    monkeypatch.setattr(system, "resource", None)
    assert system.resident_bytes() == system.peak_memory_bytes() == 0
    assert system.physical_memory() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.delattr(os, "sysconf")
    assert system.physical_memory() is None


def test_physical_memory_without_sysconf_is_that_of_meminfo(monkeypatch):
    expected = system.physical_memory()
    monkeypatch.delattr(os, "sysconf")
    assert system.physical_memory() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("error", [KeyError, OSError, ImportError])
def test_a_user_without_a_name_has_one_for_a_while(monkeypatch, error):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(_):
        raise error("uid not found: 10001")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    with system.some_user_name():
        assert getpass.getuser() == "unknown"
    assert "LOGNAME" not in os.environ
    monkeypatch.setenv("USER", "someone")
    with system.some_user_name():
        assert getpass.getuser() == "someone"


@pytest.mark.parametrize("cores", [1, 3])
def test_usable_cores_are_those_of_the_process(monkeypatch, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert system.usable_cores() == cores
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert system.usable_cores() == 1


def test_the_whole_package_without_what_windows_lacks(tmp_path, capfd):
    """Every module is imported; doctor, info, predict and train run."""
    model = write_model(tmp_path / "m.safetensors")
    phantoms = Path(__file__).parent.parent / "data_samples" / "phantoms"
    scan = next((phantoms / "imagesTr").glob("*.nii.gz"))
    fast = ["plan.features=[4,8]", "plan.patch_size=[16,16,16]", "training.validations=0"]
    code = f"""{WITHOUT}
import volseg
from volseg.cli import app
for module in pkgutil.walk_packages(volseg.__path__, "volseg."):
    if module.name != "volseg.__main__":
        __import__(module.name)
assert "fcntl" not in sys.modules and "resource" not in sys.modules
for arguments in (
    ["doctor"],
    ["info", {str(model)!r}],
    ["predict", {str(scan)!r}, "--model", {str(model)!r}, "--output", {str(tmp_path / "out.nii.gz")!r}],
    ["train", {str(phantoms)!r}, "--output", {str(tmp_path / "run")!r}, "--steps", "2", "--device", "cpu",
     *(part for one in {fast!r} for part in ("--set", one))],
):
    try:
        app(arguments)
    except SystemExit as end:
        assert not end.code, (arguments, end.code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out.nii.gz").exists()
    assert (tmp_path / "run" / "model.safetensors").exists()
