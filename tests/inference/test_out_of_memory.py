"""Memory that runs out while windows are computed: fewer at once, no window lost, the same labels."""

import logging
from dataclasses import replace

import pytest
import torch

from tests.pipeline import blob, write_model
from volseg import Segmenter
from volseg.device import memory_errors
from volseg.errors import ResourceError
from volseg.inference.stream import Engine, Predictor, stream_logits
from volseg.inference.windows import Windows
from volseg.networks import UNet

CPU = torch.device("cpu")
NVML = 'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":1131, please report a bug to PyTorch.'
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError(
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input"
    ),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError(NVML),
    MemoryError(),
]


class Device:
    """A network on a device with memory for `room` windows, for the first `calls` calls for all."""

    def __init__(self, network, room, error, calls=0):
        self.network, self.room, self.error, self.calls = network, room, error, calls
        self.sizes, self.failed = [], 0

    def __call__(self, batch):
        if len(self.sizes) >= self.calls and len(batch) > self.room:
            self.failed += 1
            raise self.error
        self.sizes.append(len(batch))
        return self.network(batch)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return torch.nn.Conv3d(1, 2, 3, padding=1).eval()


def logits_of(forward, windows, volume):
    """The whole stream in one tensor; its slabs come in order and without gaps."""
    engine, found, at = Engine(Predictor(forward), windows, CPU, slab_logits=1), [], 0
    with torch.inference_mode():
        for first, slab in stream_logits(volume, engine, (0, 1, 2)):
            assert first == at
            at += slab.shape[1]
            found.append(slab.clone())
    assert at == volume.shape[1]
    return torch.cat(found, 1)


@pytest.fixture(scope="module")
def volume():
    """Noise, with windows of background, which are computed once, between it."""
    scan = torch.randn(1, 40, 24, 20, generator=torch.Generator().manual_seed(1))
    scan[:, 12:32] = 0
    return scan


@pytest.mark.parametrize(
    ("error", "mirror", "room", "calls"),
    [
        *((error, (), 4, 0) for error in ERRORS),
        *((ERRORS[0], mirror, room, calls) for mirror in ((), (0, 2)) for room, calls in ((4, 0), (1, 0), (3, 2))),
    ],
    ids=lambda one: str(one)[:30],
)
def test_windows_are_computed_in_halves_and_none_is_lost(network, volume, caplog, error, mirror, room, calls):
    windows = Windows((8, 8, 8), batch_size=8, mirror_axes=mirror)
    whole = Device(network, 8, error)
    expected = logits_of(whole, windows, volume)
    small = Device(network, room, error, calls)
    with caplog.at_level(logging.WARNING, "volseg"):
        found = logits_of(small, windows, volume)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.argmax(0), expected.argmax(0))
    # Each window once, whatever failed before it; the constant ones once in all.
    assert sum(small.sizes) == sum(whole.sizes)
    # As many are not tried again.
    assert small.failed == len(caplog.messages) == {4: 1, 1: 3, 3: 2}[room]
    assert all("windows at once; continuing with" in message for message in caplog.messages)
    assert max(small.sizes[calls:]) <= room


@pytest.mark.parametrize("mirror", [(), (1,)])
def test_a_single_window_that_does_not_fit_raises_what_the_device_said(network, volume, mirror):
    error = torch.OutOfMemoryError("CUDA out of memory.")
    device = Device(network, 0, error)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        logits_of(device, Windows((8, 8, 8), batch_size=8, mirror_axes=mirror), volume)
    assert caught.value is error
    assert device.failed == 4


def test_an_error_that_is_not_about_memory_is_not_tried_again(network, volume):
    device = Device(network, 4, RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        logits_of(device, Windows((8, 8, 8), batch_size=8), volume)
    assert device.failed == 1


def test_what_a_failed_batch_held_is_freed_before_the_next(network, volume):
    held = []

    class Maps(torch.Tensor):
        """Counts those that are alive."""

        def __del__(self):
            held.remove(1)

    def forward(batch):
        maps = batch.clone().as_subclass(Maps)
        held.append(1)
        assert len(held) == 1
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return network(maps.as_subclass(torch.Tensor))

    logits_of(forward, Windows((8, 8, 8), batch_size=8), volume)


@pytest.fixture
def gpu(monkeypatch):
    """GPUs with as much free memory as is said; the last of them is the one that this process computes on."""

    def simulate(*free):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda number: (number == len(free) - 1) << 20)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number=0: (free[number], 1 << 34))

    return simulate


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error)[:30])
@pytest.mark.parametrize("free", [(100 << 20,), (8 << 30, 100 << 20)], ids=["one GPU", "the second GPU"])
def test_on_a_full_gpu_all_of_them_are_the_one_sentence(gpu, error, free):
    gpu(*free)
    with (
        pytest.raises(ResourceError, match=r"^Out of memory while segmenting\. Free memory,"),
        memory_errors("segmenting"),
    ):
        raise error


@pytest.mark.parametrize("error", ERRORS[3:6], ids=lambda error: str(error)[:30])
@pytest.mark.parametrize("free", [(8 << 30,), (100 << 20, 8 << 30)], ids=["one GPU", "the first GPU is another's"])
def test_with_free_memory_what_cudnn_says_is_another_fault(gpu, error, free):
    gpu(*free)
    with pytest.raises(RuntimeError) as caught, memory_errors("segmenting"):
        raise error
    assert caught.value is error


def test_a_gpu_that_answers_nothing_more_is_not_taken_for_a_full_one(monkeypatch):
    def lost(_):
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lost)
    with pytest.raises(RuntimeError, match="INTERNAL_ERROR"), memory_errors("segmenting"):
        raise ERRORS[4]


def test_a_segmenter_gives_the_labels_of_a_run_without_errors(tmp_path, monkeypatch):
    segmenter = Segmenter.load(write_model(tmp_path / "tiny.safetensors"), device="cpu", precision="fp32")
    labeller = segmenter.labeller
    scan = (blob((40, 44, 38)), torch.eye(4).numpy())
    eight = replace(segmenter, labeller=replace(labeller, windows=replace(labeller.windows, batch_size=8)))
    expected = eight(scan)
    real = UNet.forward
    failed = []

    def short(network, x):
        if len(x) > 2:
            failed.append(len(x))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(network, x)

    monkeypatch.setattr(UNet, "forward", short)
    found = eight(scan)
    assert failed == [8, 4]
    assert (found.labels == expected.labels).all()
    assert len(set(expected.labels.ravel().tolist())) > 1
    monkeypatch.setattr(UNet, "forward", lambda network, x: short(network, x.repeat(3, 1, 1, 1, 1)))
    with pytest.raises(ResourceError, match=r"^Out of memory while segmenting on cpu\."):
        eight(scan)
