"""Choice of the precision, on the real processor and on simulated GPUs."""

import threading

import pytest
import torch

from volseg import precision
from volseg.precision import choose_precision, exact_float32

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture(autouse=True)
def no_earlier_warnings():
    precision._warn_once.cache_clear()


@pytest.fixture
def gpu(monkeypatch):
    """Simulates a GPU with a given capability and cuDNN version."""

    def simulate(capability, cudnn=92000):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)

    return simulate


@pytest.mark.parametrize(("native", "chosen", "warnings"), [(True, torch.bfloat16, 0), (False, torch.float32, 1)])
def test_a_cpu_that_emulates_bfloat16_says_so_once(monkeypatch, caplog, native, chosen, warnings):
    monkeypatch.setattr(precision, "_cpu_computes_bf16", lambda: native)
    assert choose_precision("auto", CPU) == chosen
    assert choose_precision("bf16", CPU) == choose_precision("bf16", CPU) == torch.bfloat16
    assert sum("no bfloat16" in message for message in caplog.messages) == warnings


@pytest.mark.parametrize(("capability", "chosen"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_a_gpu_takes_what_it_computes_natively(gpu, caplog, capability, chosen):
    gpu(capability)
    assert choose_precision("auto", GPU) == chosen
    assert not caplog.messages
    choose_precision("bf16", GPU)
    assert len(caplog.messages) == (capability < (8, 0))


@pytest.mark.parametrize(
    ("cudnn", "sound"), [(None, True), (90700, True), (90800, False), (91400, False), (91500, True)]
)
def test_a_cudnn_that_computes_wrongly_is_not_trusted(gpu, caplog, cudnn, sound):
    gpu((9, 0), cudnn)
    assert choose_precision("auto", GPU) == (torch.bfloat16 if sound else torch.float32)
    assert choose_precision("fp16", GPU) == torch.float16
    assert sum("cuDNN" in message for message in caplog.messages) == (0 if sound else 2)
    assert choose_precision("auto", CPU) != torch.float16


def test_float32_is_exact_inside_and_as_before_afterwards():
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    assert before != "ieee"
    entered, leave = threading.Event(), threading.Event()

    def other():
        with exact_float32(GPU, torch.float32):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with exact_float32(GPU, torch.float32):
        assert conv.fp32_precision == "ieee"
        thread.start()
        entered.wait()
    assert conv.fp32_precision == "ieee"
    leave.set()
    thread.join()
    assert conv.fp32_precision == before
    for device, dtype in ((GPU, torch.bfloat16), (CPU, torch.float32)):
        with exact_float32(device, dtype):
            assert conv.fp32_precision == before
