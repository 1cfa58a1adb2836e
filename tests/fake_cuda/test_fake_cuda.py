"""What a GPU would be asked to do, found out without one: see `tests.fake_cuda.trace`.

Types are those of the logits and losses; copies are those of feature maps from one memory format to the other, the ones
that torch starts itself and the ones that a convolution needs inside; launches are the operations of a step.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.pipeline import environment

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
TORCH = Path(torch.__file__).parent
LIBRARIES = ("-lc10", "-ltorch_cpu", f"-Wl,-rpath,{TORCH / 'lib'}")
# Of a decoder stage, the gradient of the upsampled maps is a part of that of both maps joined, and copied from there.
DECODER_STAGES = 2
SAMPLES, CLASSES = 2, 3


@pytest.fixture(scope="session")
def traces(tmp_path_factory) -> dict:
    """The operations of every case; one program compiles the guard, and one runs the cases."""
    if torch.version.cuda:
        pytest.skip("torch is built with CUDA here, and the guard stands for it")
    compiler = shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs g++ on Linux, to compile the guard")
    folder = tmp_path_factory.mktemp("fake_cuda")
    guard, output = folder / "guard.so", folder / "traces.json"
    command = [compiler, "-shared", "-fPIC", "-O0", "-std=c++20", f"-I{TORCH / 'include'}", FOLDER / "guard.cpp"]
    built = subprocess.run(
        [*command, f"-L{TORCH / 'lib'}", *LIBRARIES, "-o", guard],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    if built.returncode:
        pytest.skip(f"the guard does not compile against torch {torch.__version__}: {built.stderr[-300:]}")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fake_cuda.trace", guard, output],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(output.read_text())


PREDICTED = [
    "predict plain bf16", "predict plain fp16", "predict plain fp32", "predict residual bf16", "predict 2+1 bf16",
    "predict 2-D bf16", "predict batch bf16", "predict group bf16", "predict none bf16", "predict two channels bf16",
    "predict mirror", "predict members",
]  # fmt: skip
TRAINED = [
    "train plain bf16", "train plain fp16", "train plain fp32", "train residual bf16", "train 2+1 bf16",
    "train 2-D bf16",
]  # fmt: skip


def named(operations: list[dict], *names: str) -> list[dict]:
    return [one for one in operations if one["name"].partition(".")[0] in names]


def same_format(one: dict, other: dict) -> bool:
    return any(mine and theirs for mine, theirs in zip(one["formats"], other["formats"], strict=True))


def is_maps(tensor: dict) -> bool:
    """Whether a tensor is feature maps of the whole batch or a sample, rather than a kernel, an image or logits."""
    shape = tensor["shape"]
    return len(shape) == 5 and shape[0] in (1, SAMPLES, 2 * SAMPLES) and min(shape[1], shape[4]) > CLASSES


def changes(operations: list[dict]) -> list[str]:
    """The copies of feature maps to the other format that torch starts."""
    return [
        f"{one['name']} {one['in'][0]['shape']}"
        for one in named(operations, "clone", "copy_", "_to_copy", "contiguous")
        if is_maps(one["in"][0]) and not same_format(one["in"][-1], one["out"][0])
    ]


def inside(operations: list[dict], name: str) -> list[list[int]]:
    """The feature maps that convolutions first copy to the format of their output."""
    count = 1 if name == "convolution" else 2
    return [
        tensor["shape"]
        for one in named(operations, name)
        for tensor in one["in"][:count]
        if is_maps(tensor) and not same_format(tensor, one["out"][0])
    ]


@pytest.mark.parametrize("case", [*PREDICTED, *TRAINED, "classify", "ring"])
def test_logits_and_losses_are_float32(traces, case):
    returned = traces[case]["returned"]
    assert returned
    assert {one["dtype"] for one in returned} == {"float32"}


@pytest.mark.parametrize(("case", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")])
def test_convolutions_run_in_the_precision_and_no_head_is_one_of_them(traces, case, dtype):
    found = named(traces[f"predict plain {case}"]["operations"], "convolution")
    assert {one["out"][0]["dtype"] for one in found} == {dtype}
    # Four blocks of two or one convolutions, two transposed ones; the head is a matrix product in float32.
    heads = [one for one in found if one["out"][0]["shape"][1] == CLASSES]
    assert len(found) - len(heads) == 12
    assert len(heads) == (case == "fp32")


@pytest.mark.parametrize("case", [*(one for one in PREDICTED if "group" not in one), *TRAINED, "classify"])
def test_feature_maps_keep_their_format(traces, case):
    # torch's group norm copies its input on a GPU.
    assert named(traces[case]["operations"], "convolution")
    assert changes(traces[case]["operations"]) == []
    assert inside(traces[case]["operations"], "convolution") == []
    assert len(inside(traces[case]["operations"], "convolution_backward")) <= DECODER_STAGES


@pytest.mark.parametrize("case", [*(one for one in PREDICTED if "group" not in one), *TRAINED])
def test_convolutions_compute_in_channels_last(traces, case):
    found = named(traces[case]["operations"], "convolution")
    assert len(found) >= 12
    assert all(one["out"][0]["formats"][1] for one in found if one["out"][0]["shape"][1] > 1)


@pytest.mark.parametrize("case", ["predict plain bf16", "predict 2+1 bf16", "predict 2-D bf16"])
def test_the_tricks_of_the_cpu_are_not_used(traces, case):
    convolutions = named(traces[case]["operations"], "convolution")
    assert all(len(one["in"][0]["shape"]) == 5 for one in convolutions)
    names = {one["name"].partition(".")[0] for one in traces[case]["operations"]}
    assert not names & {"mkldnn_convolution", "einsum", "conv2d", "repeat", "clone"}


# Operations of a window or a step on a GPU, of a network of 12 convolutions and 2 samples: as many as it takes now.
@pytest.mark.parametrize(
    ("case", "most"),
    [
        ("predict plain bf16", 80),
        ("predict residual bf16", 140),
        ("predict 2+1 bf16", 130),
        ("train plain bf16", 330),
        ("train residual bf16", 560),
    ],
)
def test_launches_of_a_step(traces, case, most):
    count = len(traces[case]["operations"])
    assert most / 2 < count <= most


def test_the_launches_of_the_optimiser_do_not_grow_with_the_kernels_of_a_shape(traces):
    few, many = (traces[case]["operations"] for case in ("muon 2", "muon 12"))
    products = ("mm", "bmm", "addmm", "baddbmm")
    # Two shapes: 14 products with and without a sum each, and the last.
    assert len(named(few, *products)) == len(named(many, *products)) == 2 * 19
    # What is added is the moments, which the first step makes, and the stacks.
    assert len(many) - len(few) <= 12
    assert len(many) < 90
    assert not named(many, "clone")


def test_the_running_average_of_the_weights_is_one_launch(traces):
    assert [one["name"] for one in traces["average"]["operations"]] == ["_foreach_lerp_.Scalar"]


def test_no_operation_asks_for_a_value_while_windows_are_computed_and_logits_observed(traces):
    """The host would wait until the GPU has done all that it was given."""
    asking = ("nonzero", "_local_scalar_dense", "item", "is_nonzero", "masked_select", "unique_dim", "equal")
    for case in (*PREDICTED, "ring", "observe", "observe regions"):
        operations = traces[case]["operations"]
        assert operations
        assert named(operations, *asking) == [], case
