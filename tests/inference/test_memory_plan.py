"""The memory of windows is known before they are computed: against measured peaks, and what is done with it."""

import json
import logging
import os
import subprocess
import sys
import threading
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch

from tests.pipeline import blob, environment, tiny_plan, write_model
from volseg import Segmenter
from volseg.config import Label, NetworkConfig
from volseg.data.io.reading import scan_from_array
from volseg.errors import InputError, ResourceError
from volseg.inference import budget, promises, room
from volseg.inference.budget import CHUNKS, GIB, HOLES, ChunkSize, MemoryEstimate, plan_chunks, scans_at_once
from volseg.inference.promises import promised
from volseg.inference.windows import Windows
from volseg.modelfile import ModelCard
from volseg.networks.footprint import Computing, footprint
from volseg.system import MemoryLimit, resident_bytes

AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])
MIB = 2**20


def measured(**options):
    """What was planned and what was measured of a scan that is segmented in a process of its own, in bytes."""
    command = [sys.executable, "-m", "tests.inference.peak", json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "options",
    [
        {"features": [32, 64], "patch": [64, 64, 64]},
        # Filters are most of it,
        {"features": [320, 320], "patch": [16, 16, 16], "encoder_blocks": [4, 4], "decoder_blocks": [4]},
        # or logits.
        {"features": [4, 8], "patch": [64, 64, 64], "classes": 120, "shape": [160, 160, 160]},
    ],
)
def test_what_is_planned_holds(options):
    found = measured(**options)
    assert found["measured"] <= found["planned"] <= 1.7 * found["measured"]


LARGE_WINDOWS = [
    {"features": [32, 64], "patch": [112, 112, 112]},
    {"features": [32, 64], "patch": [128, 128, 128], "mirror": True, "precision": "bf16"},
]
MORE_LARGE_WINDOWS = [
    {"features": [32, 64], "patch": [128, 128, 128], "precision": "bf16"},
    {"features": [32, 64], "patch": [112, 112, 112], "released": True},
    {"features": [32, 64], "patch": [96, 112, 128], "mirror": True},
    {"features": [32, 64], "patch": [112, 112, 112], "encoder": "residual"},
    {"features": [32, 64], "patch": [112, 112, 112], "block": "conv2plus1d"},
    {"features": [32, 64], "patch": [96, 96, 96], "classes": 100, "regions": True, "shape": [128, 128, 128]},
    {
        "features": [32, 64],
        "patch": [4, 512, 512],
        "strides": [[1, 1, 1], [1, 2, 2]],
        "kernels": [[1, 3, 3], [1, 3, 3]],
        "shape": [512, 512, 8],
    },
    {"features": [16, 32, 64], "patch": [32, 224, 224], "encoder_blocks": [2, 2, 2], "decoder_blocks": [2, 2]},
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [*LARGE_WINDOWS, *(pytest.param(one, marks=pytest.mark.long) for one in MORE_LARGE_WINDOWS)]
)
def test_the_estimate_of_large_windows_is_true(options):
    found = measured(**options)
    assert found["measured"] > 450 * MIB
    assert found["measured"] <= found["planned"] <= 1.5 * found["measured"]


@pytest.mark.slow
def test_measuring_labels_takes_what_is_planned():
    code = (
        "import numpy as np\n"
        "from volseg.config import Label\n"
        "from volseg.inference.quality import measure\n"
        "from volseg.system import peak_memory_bytes, resident_bytes\n"
        "labels = np.zeros((160, 160, 160), np.uint8)\n"
        "labels[::2, ::2, ::2] = labels[1::2, 1::2, 1::2] = 1\n"
        "used = resident_bytes()\n"
        "measure(labels, (Label(name='a', value=1),), 1.0, 1 << 22, ())\n"
        "print(peak_memory_bytes() - used)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert int(done.stdout) <= budget.MEASURE_BYTES * 160**3


def need_of(plan=None, shape=(36, 50, 34), members=1, **changes):
    """What a scan needs of a tiny network."""
    plan = plan or tiny_plan()
    values = {
        "card": ModelCard(name="tiny", plan=plan, members=members),
        "scan": scan_from_array(blob(shape), AFFINE),
        "windows": Windows(plan.patch_size),
        "dtype": torch.float32,
        "device": torch.device("cpu"),
    }
    return MemoryEstimate(**{**values, **changes})


def test_the_parts_of_a_plan_that_depend_on_the_scan_alone():
    voxels = 36 * 50 * 34
    parts = need_of().parts(ChunkSize())
    assert parts["writing labels"] == 2 * voxels
    assert parts["measuring labels"] == voxels + 96 * voxels
    large = need_of(tiny_plan(labels=(Label(name="ball", value=1), Label(name="rod", value=300))))
    assert large.parts(ChunkSize())["writing labels"] == 4 * voxels
    assert need_of(probabilities=True).parts(ChunkSize())["writing labels"] == (2 + 2 * 3) * voxels
    assert need_of().parts(ChunkSize(100))["measuring labels"] == voxels + 96 * 100


def test_windows_and_everything_around_them_add_up():
    """A window of 16 x 16 x 16 of the tiny network: maps and all else in bytes."""
    plan = tiny_plan()
    values = 16**3
    found = footprint(plan.network, plan.patch_size, 1, Computing(4, keep_freed=False), head=True)
    assert found.filters == 0
    # The window as it is given and as it is converted, both inputs of the decoder as one, and its coarser input;
    # the output of the only decoder block is as large as the skip connection.
    assert found.maps >= 4 * values * (1 + 1 + 8 + 4 + 1)
    assert found.maps <= 4 * values * 30
    both = footprint(plan.network, plan.patch_size, 2, Computing(4, keep_freed=False), head=True)
    assert both.maps == pytest.approx(2 * found.maps, rel=0.03)
    without = footprint(plan.network, plan.patch_size, 1, Computing(4, keep_freed=False), head=False)
    assert without.maps <= found.maps


def test_logits_that_are_resampled_take_memory_by_the_chunk():
    """All planes of a window's logits in a large chunk, three slabs of them; one plane in a small one."""
    large, small = (need_of().parts(ChunkSize(voxels))["windows and labels"] for voxels in (10**9, 1))
    plane = 4 * 3 * 36 * 34
    assert large - small == pytest.approx(3 * 15 * plane * HOLES, abs=4)


@pytest.mark.parametrize("edge", [256, 512])
def test_a_patch_that_no_machine_holds_is_rejected_before_the_work(tmp_path, monkeypatch, edge):
    network = NetworkConfig(classes=3, features=(512, 1024, 2048) if edge == 256 else (32, 64))
    path = write_model(tmp_path / "m.safetensors")
    segmenter = Segmenter.load(path, device="cpu")
    plan = tiny_plan(patch_size=(edge,) * 3, network=network)
    labeller = replace(segmenter.labeller, plan=plan, windows=Windows(plan.patch_size))
    segmenter = replace(segmenter, card=ModelCard(name="huge", plan=plan), labeller=labeller)
    monkeypatch.setattr(type(labeller), "label", lambda *_: pytest.fail("the work has begun"))
    monkeypatch.setattr(budget, "tightest_limit", lambda: MemoryLimit(24 * GIB, 23 * GIB, "this machine"))
    with pytest.raises(ResourceError, match=r"needs [0-9.]+ GiB .* this machine has 2[0-9.]+ GiB for it\. Free"):
        segmenter((blob((36, 50, 34)), AFFINE))


def with_free(monkeypatch, free, source="the container or job (control group)"):
    """A machine that has that much memory left."""
    limit = MemoryLimit(8 * GIB, int(free), source)
    for module in (budget, room):
        monkeypatch.setattr(module, "tightest_limit", lambda: limit)


def test_scarce_memory_makes_chunks_smaller_and_says_why(monkeypatch, caplog):
    need = need_of(shape=(200, 200, 200))
    first, second = (max(need.parts(ChunkSize(voxels)).values()) for voxels in CHUNKS[:2])
    assert second < first
    with_free(monkeypatch, first)
    with caplog.at_level(logging.INFO, "volseg"):
        assert plan_chunks(need, None)[0].chunk == ChunkSize(CHUNKS[0])
        assert not caplog.messages
        with_free(monkeypatch, first - 1)
        plan, most = plan_chunks(need, None)
    assert (plan.chunk, most) == (ChunkSize(CHUNKS[1]), second)
    (said,) = caplog.messages
    assert "planned for the container or job (control group) has" in said
    assert f"{CHUNKS[1]} voxels at a time" in said


def test_memory_that_others_were_promised_is_not_free(monkeypatch):
    need = need_of()
    most = max(need.parts(ChunkSize()).values())
    least = min(max(need.parts(ChunkSize(voxels, keep)).values()) for voxels in CHUNKS for keep in (True, False))
    with_free(monkeypatch, most + 1000)
    assert plan_chunks(need, None, 1000)[1] == most
    with pytest.raises(ResourceError, match=r"control group\) has [0-9.]+ GiB for it"):
        plan_chunks(need, None, most + 1001 - least)


def test_what_the_process_has_taken_counts_against_the_limit(monkeypatch):
    need = need_of()
    most = max(need.parts(ChunkSize()).values())
    least = min(max(need.parts(ChunkSize(voxels, keep)).values()) for voxels in CHUNKS for keep in (True, False))
    monkeypatch.setattr(budget, "resident_bytes", lambda: 3 * GIB)
    assert plan_chunks(need, 3 * GIB + most)[0].bytes == 3 * GIB + most
    with pytest.raises(InputError, match=r"needs 3\.[0-9]+ GiB \(3\.00 for the program.*but --max-memory is 3\.0"):
        plan_chunks(need, 3 * GIB + least - 1)


def gpu(monkeypatch, free):
    """A GPU that has that much memory left."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(free), 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 0)
    return torch.device("cuda")


def test_a_gpu_with_little_memory_computes_fewer_windows_at_once(monkeypatch, caplog):
    network = NetworkConfig(classes=3, features=(32, 64))
    plan = tiny_plan(patch_size=(96, 96, 96), network=network)
    need = need_of(plan, windows=Windows(plan.patch_size, batch_size=8), device=torch.device("cuda"))
    sizes = {batch: replace(need, windows=replace(need.windows, batch_size=batch)).gpu_bytes for batch in (8, 4, 2, 1)}
    assert sizes[8] > 4 * sizes[1] > 4 * 3 * 4 * 32 * 96**3
    for free, batch in ((sizes[8], 8), (sizes[8] - 1, 4), (sizes[4] - 1, 2), (sizes[1], 1)):
        gpu(monkeypatch, free)
        with caplog.at_level(logging.INFO, "volseg"):
            assert plan_chunks(need, None)[0].windows.batch_size == batch
        assert len(caplog.messages) == (batch < 8)
        caplog.clear()
    gpu(monkeypatch, sizes[1] - 1)
    with pytest.raises(ResourceError, match=r"A window of 96 x 96 x 96 voxels needs .* of GPU memory, but cuda has"):
        plan_chunks(need, None)


def test_a_scan_that_waits_for_its_turn_is_planned_without_the_windows_that_are_computed_meanwhile(monkeypatch):
    network = NetworkConfig(classes=3, features=(32, 64))
    plan = tiny_plan(patch_size=(96, 96, 96), network=network)
    need = need_of(plan, windows=Windows(plan.patch_size, batch_size=8), device=torch.device("cuda"))
    half = replace(need, windows=replace(need.windows, batch_size=4)).gpu_bytes
    gpu(monkeypatch, 1)
    with pytest.raises(ResourceError, match="of GPU memory"):
        plan_chunks(need, None)
    # A quarter of it is for the volumes of all scans at work.
    for before, batch in ((2 * need.gpu_bytes, 8), (need.gpu_bytes, 4), (-(-4 * half // 3) - 4, 2)):
        assert plan_chunks(replace(need, gpu_free=before), None)[0].windows.batch_size == batch
    gpu(monkeypatch, need.gpu_bytes)
    assert plan_chunks(replace(need, gpu_free=1), None)[0].windows.batch_size == 8


def test_scans_computed_in_parallel_are_as_many_as_fit(monkeypatch):
    plan, cpu = tiny_plan(), torch.device("cpu")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    for free, scans in ((0, 1), (0.9 * GIB, 1), (1.1 * GIB, 2), (1.6 * GIB, 3), (100 * GIB, 4)):
        with_free(monkeypatch, free)
        assert scans_at_once(plan, torch.float32, cpu) == scans


def test_scarce_memory_is_for_one_scan_at_a_time(tmp_path, monkeypatch):
    segmenter = Segmenter.load(write_model(tmp_path / "m.safetensors"), device="cpu")
    with_free(monkeypatch, GIB)
    events = []
    opened, segmented = Segmenter._open, Segmenter._segment
    monkeypatch.setattr(Segmenter, "_open", lambda *a: (events.append("read"), opened(*a))[1])
    monkeypatch.setattr(Segmenter, "_segment", lambda *a: (segmented(*a), events.append("done"))[0])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    outcomes = list(segmenter.map([(blob(), AFFINE)] * 3))
    assert [outcome.error for outcome in outcomes] == [None] * 3
    assert events == ["read", "done"] * 3


def test_a_scan_waits_for_the_memory_that_another_was_promised():
    free, events, inside = 10, [], threading.Event()

    def plan(size):
        def of(others):
            if size > free - others:
                raise ResourceError("too much")
            return size, size

        return of

    def second():
        with promised(plan(6)):
            events.append("second")

    with promised(plan(5)) as found:
        assert found == 5
        waiting = threading.Thread(target=second)
        waiting.start()
        inside.wait(0.2)
        events.append("first")
    waiting.join(10)
    assert events == ["first", "second"]
    with pytest.raises(ResourceError, match="too much"), promised(plan(11)):
        pass
    assert promises._promised == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_waits_for_no_scan_of_its_parent():
    with promised(lambda _: ("plan", 10)):
        child = os.fork()
        if not child:
            with promised(lambda others: ("plan", others)) as found:
                os._exit(0 if found == "plan" and promises._promised == [0] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert promises._promised == []


def test_a_file_that_the_machine_cannot_hold_is_rejected_before_it_is_read(tmp_path, monkeypatch):
    segmenter = Segmenter.load(write_model(tmp_path / "m.safetensors"), device="cpu")
    path = tmp_path / "scan.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((100, 100, 100), np.int16), AFFINE), path)
    with_free(monkeypatch, 2e6 - 1)
    monkeypatch.setattr("volseg.api.segmenter.as_scan", lambda *_: pytest.fail("the scan is read"))
    with pytest.raises(ResourceError, match=r"scan\.nii takes 2 MiB, but the container .* has 2 MiB left"):
        segmenter(path)


def test_the_record_has_the_peak_of_the_process(tmp_path):
    segmenter = Segmenter.load(write_model(tmp_path / "m.safetensors"), device="cpu")
    ballast = np.ones(200 * MIB, np.uint8)
    before = resident_bytes()
    assert before > ballast.nbytes
    assert segmenter((blob(), AFFINE)).record["peak_memory_bytes"] >= before
