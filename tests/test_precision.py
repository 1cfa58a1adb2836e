"""Choice of the precision, on the real processor and on simulated GPUs."""

import threading

import pytest
import torch

from volseg import precision
from volseg.precision import choose_precision, exact_float32, tuned_convolutions

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


def settings():
    """All of torch's switches for float32, the older and the newer; what torch refuses to tell is None."""

    def told(read):
        try:
            return read()
        except RuntimeError:
            return None

    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    newer = {"all": torch.backends, "matmul": cuda.matmul, "cudnn": cudnn, "conv": cudnn.conv, "rnn": cudnn.rnn}
    newer |= {"cpu matmul": mkldnn.matmul, "cpu conv": mkldnn.conv}
    return {name: one.fp32_precision for name, one in newer.items()} | {
        "older matmul": told(lambda: cuda.matmul.allow_tf32),
        "older cudnn": told(lambda: cudnn.allow_tf32),
        "older word": told(torch.get_float32_matmul_precision),
    }


def older_flags():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True


def older_flags_off():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def newer_flags():
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "tf32"


def newer_flags_off():
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "ieee"


def newer_for_all():
    torch.backends.fp32_precision = "tf32"


def newer_after_older():
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.conv.fp32_precision = "ieee"


PROGRAMS = [
    lambda: None,
    older_flags,
    older_flags_off,
    newer_flags,
    newer_flags_off,
    newer_for_all,
    newer_after_older,
    lambda: torch.set_float32_matmul_precision("high"),
    lambda: torch.set_float32_matmul_precision("medium"),
]


@pytest.fixture
def torchs_settings():
    """Puts torch's switches back to what they are when it is imported."""
    yield
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    for holder in (torch.backends, cuda.matmul, cudnn, mkldnn.matmul, mkldnn.conv):
        holder.fp32_precision = "none"
    cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "tf32"
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = True
    cuda.matmul.fp32_precision = mkldnn.matmul.fp32_precision = "none"


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_tf32_whatever_the_program_around_has_set_and_all_as_before_afterwards(torchs_settings, program):
    at_import = settings()
    program()
    before = settings()
    with exact_float32(GPU, torch.float32):
        inside = settings()
        assert inside["matmul"] == inside["conv"] == "ieee"
        # Where the program may read the older switches, it still may, and they say the same.
        assert before["older matmul"] is None or inside["older matmul"] is False
        assert before["older cudnn"] is None or inside["older cudnn"] is False
    assert settings() == before
    with exact_float32(GPU, torch.bfloat16):
        assert settings()["matmul"] == "ieee"
        assert settings()["conv"] == before["conv"]
    assert settings() == before
    with exact_float32(CPU, torch.float32):
        assert settings()["cpu matmul"] == settings()["cpu conv"] == "ieee"
    assert settings() == before
    torchs = program is PROGRAMS[0]
    assert (before == at_import) is torchs


def test_the_fixture_leaves_no_setting_of_another_program():
    # What torch 2.13 has at import.
    assert settings()["older word"] == "highest"
    assert settings()["older cudnn"] is True
    assert settings()["conv"] == settings()["rnn"] == "tf32"
    assert settings()["matmul"] == settings()["all"] == settings()["cpu matmul"] == "none"


def test_a_setting_of_all_operations_still_reaches_them_afterwards(torchs_settings):
    torch.backends.fp32_precision = "tf32"
    with exact_float32(GPU, torch.float32):
        pass
    torch.backends.fp32_precision = "ieee"
    assert settings()["matmul"] == "ieee"


def test_a_cpu_computes_matrix_products_exactly_where_a_program_allows_bfloat16(torchs_settings):
    torch.manual_seed(0)
    one, other = torch.randn(2, 256, 256).unbind()
    exact = one.double() @ other.double()
    torch.set_float32_matmul_precision("medium")
    with exact_float32(CPU, torch.float32):
        assert (one @ other - exact).abs().max() < 1e-4


def test_cudnn_is_tuned_for_fixed_shapes_on_a_gpu_alone():
    before = torch.backends.cudnn.benchmark
    assert not before
    with tuned_convolutions(GPU, True), tuned_convolutions(GPU, True):
        assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.benchmark
    for device, fixed in ((GPU, False), (CPU, True)):
        with tuned_convolutions(device, fixed):
            assert not torch.backends.cudnn.benchmark
