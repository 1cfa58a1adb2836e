"""The memory of the machine is the least of all its limits, read from files as Linux has them."""

import resource
from pathlib import Path

import pytest
import torch

from volseg import system
from volseg.cli.console import guarded
from volseg.device import batch_workers, machine_memory_gb
from volseg.errors import ResourceError
from volseg.system import MemoryLimit, is_out_of_memory, memory_limits, missing_to_start, tightest_limit, usable_memory

GIB, MIB = 2**30, 2**20
INFINITE = resource.RLIM_INFINITY


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 16 GiB, 10 of them free, without other limits; returns a function that writes its files."""

    def write(path: str, text: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    write("proc/meminfo", f"MemTotal: {16 << 20} kB\nMemAvailable: {10 << 20} kB\nSwapFree: 0 kB\n")
    write("proc/self/cgroup", "0::/\n")
    write("proc/self/status", f"VmSize: {1 << 20} kB\nVmData: {1 << 19} kB\n")
    monkeypatch.setattr(system, "_ROOT", tmp_path)
    monkeypatch.setattr(system, "physical_memory", lambda: 16 * GIB)
    limits = dict.fromkeys((resource.RLIMIT_AS, resource.RLIMIT_DATA), INFINITE)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], INFINITE))
    write.limits = limits
    return write


def test_without_other_limits_it_is_what_is_available(machine):
    assert memory_limits() == [MemoryLimit(16 * GIB, 10 * GIB, "this machine")]
    assert usable_memory() == 16 * GIB
    machine("proc/meminfo", f"MemTotal: {16 << 20} kB\nMemAvailable: {10 << 20} kB\nSwapFree: {2 << 20} kB\n")
    assert tightest_limit().free == 12 * GIB
    machine("proc/meminfo", f"MemTotal: {16 << 20} kB\nMemAvailable: {10 << 20} kB\nSwapFree: {64 << 20} kB\n")
    assert tightest_limit().free == 16 * GIB


def group(machine, folder, one=False, **values):
    """A control group with bytes in its files; of version 1, `one`."""
    limit, used = ("memory.limit_in_bytes", "memory.usage_in_bytes") if one else ("memory.max", "memory.current")
    page = "total_inactive_file" if one else "inactive_file"
    machine(f"{folder}/{limit}", f"{values.get('max', 'max')}\n")
    machine(f"{folder}/{used}", f"{values.get('used', 0)}\n")
    machine(f"{folder}/memory.stat", f"anon 1\n{page} {values.get('pages', 0)}\nactive_file 0\n")
    if "high" in values:
        machine(f"{folder}/memory.high", f"{values['high']}\n")


@pytest.mark.parametrize(
    ("one", "mounted", "line"),
    [
        (False, "sys/fs/cgroup", "0::/pod/container\n"),
        (False, "sys/fs/cgroup/unified", "0::/pod/container\n"),
        (True, "sys/fs/cgroup/memory", "5:cpu,cpuacct:/\n4:memory:/pod/container\n0::/\n"),
        (True, "sys/fs/cgroup/memory", "4:hugetlb,memory:/pod/container\n"),
    ],
)
def test_control_groups_of_all_levels_and_both_versions_count(machine, one, mounted, line):
    machine("proc/self/cgroup", line)
    group(machine, f"{mounted}/pod/container", one, max=4 * GIB, used=GIB)
    assert tightest_limit() == MemoryLimit(4 * GIB, 3 * GIB, "the container or job (control group)")
    assert machine_memory_gb() == 4
    group(machine, f"{mounted}/pod", one, max=3 * GIB, used=2 * GIB, pages=GIB // 2)
    assert tightest_limit()[:2] == (3 * GIB, GIB * 3 // 2)
    group(machine, f"{mounted}/pod", one, max=3 * GIB, used=4 * GIB)
    assert tightest_limit().free == 0
    group(machine, f"{mounted}/other", one, max=1)
    assert usable_memory() == 3 * GIB


def test_a_container_that_sees_its_own_group_as_the_root(machine):
    machine("proc/self/cgroup", "0::/../../docker/0123abcd\n")
    group(machine, "sys/fs/cgroup", max=2 * GIB, used=GIB)
    assert tightest_limit().free == GIB


def test_memory_high_counts_as_a_limit(machine):
    group(machine, "sys/fs/cgroup", max=4 * GIB, high=2 * GIB, used=GIB)
    assert usable_memory() == 2 * GIB
    assert tightest_limit().free == GIB


@pytest.mark.parametrize("text", ["max\n", "", "many", "\xff", "9223372036854771712\n"])
def test_files_without_a_limit_are_none(machine, text):
    machine("sys/fs/cgroup/memory.max", text)
    machine("sys/fs/cgroup/memory.current", "5\n")
    assert tightest_limit().source == "this machine"


def test_limits_of_the_shell_count_from_what_the_process_has(machine, monkeypatch):
    monkeypatch.setattr(system, "usable_cores", lambda: 4)
    machine.limits[resource.RLIMIT_AS] = 4 * GIB
    # Of a gibibyte that is taken, and the stacks of threads.
    assert tightest_limit()[:2] == (4 * GIB, 3 * GIB - (256 + 4 * 8) * MIB)
    assert "ulimit -v" in tightest_limit().source
    machine.limits[resource.RLIMIT_DATA] = GIB
    assert tightest_limit()[:2] == (GIB, GIB // 2 - (256 + 4 * 8) * MIB)
    assert "ulimit -d" in tightest_limit().source


def test_a_system_that_tells_nothing_has_no_limits(monkeypatch):
    monkeypatch.setattr(system, "_ROOT", Path("/nowhere"))
    monkeypatch.setattr(system, "physical_memory", lambda: None)
    monkeypatch.setattr(system, "resource", None)
    assert memory_limits() == []
    assert tightest_limit() is None
    assert usable_memory() is None
    assert machine_memory_gb() == float("inf")


@pytest.mark.parametrize(("free", "workers"), [(100 * GIB, 6), (5 * GIB, 5), (GIB, 1), (0, 1)])
def test_batch_workers_are_as_many_as_the_memory_holds(monkeypatch, free, workers):
    monkeypatch.setattr("volseg.device.usable_cores", lambda: 8)
    monkeypatch.setattr("volseg.device.tightest_limit", lambda: MemoryLimit(100 * GIB, free, "this machine"))
    assert batch_workers(torch.device("cuda"), 1) == workers


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("can't start new thread"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
)
def test_memory_that_runs_out_is_a_sentence(error, capsys):
    assert is_out_of_memory(error)
    with pytest.raises(SystemExit) as ended:
        _ended(error)
    assert ended.value.code == 1
    assert (
        capsys.readouterr().err == "Error: Out of memory. Free memory, raise the limit, or use a machine with more.\n"
    )


def _ended(error):
    """The exit of a command that raises."""

    @guarded
    def command():
        raise error

    try:
        command()
    except Exception as exit_:
        raise SystemExit(exit_.exit_code) from exit_


@pytest.mark.parametrize("error", [RuntimeError("shape"), OSError(2, "No such file"), ImportError("no module")])
def test_other_errors_are_not_taken_for_a_lack_of_memory(error):
    assert not is_out_of_memory(error)


def test_a_limit_under_which_nothing_can_be_loaded_is_refused_first(machine, capsys):
    assert missing_to_start() is None
    machine.limits[resource.RLIMIT_AS] = 3 * GIB // 2
    assert "volseg needs 800 MiB to start, but the limit of the address space (ulimit -v) has" in missing_to_start()
    machine.limits[resource.RLIMIT_AS] = INFINITE
    group(machine, "sys/fs/cgroup", max=GIB, used=700 * MIB)
    with pytest.raises(SystemExit):
        _ended(ResourceError("the command has begun"))
    assert capsys.readouterr().err.startswith("Error: volseg needs 350 MiB to start, but the container or job")
