"""Instance norm against torch's."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from volseg.errors import UsageError
from volseg.networks import InstanceNorm
from volseg.networks.cpu.feature_maps import convolves_bfloat16
from volseg.networks.cpu.instance_norm import InstanceNormFunction

FORMATS = [torch.contiguous_format, torch.channels_last_3d]


@pytest.mark.parametrize("memory_format", FORMATS)
def test_equals_torch_forward_and_backward(memory_format):
    torch.manual_seed(0)
    ours, torchs = InstanceNorm(5), nn.InstanceNorm3d(5, affine=True)
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    torchs.load_state_dict(ours.state_dict())
    x = (torch.randn(2, 5, 4, 6, 7) * 3 + 2).contiguous(memory_format=memory_format)
    gradient = torch.randn(x.shape)
    results = []
    for norm in (ours, torchs):
        leaf = x.clone().requires_grad_()
        out = norm(leaf)
        out.backward(gradient)
        results.append((out, leaf.grad, norm.weight.grad, norm.bias.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert results[0][0].is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inplace", [False, True])
def test_eps_is_that_of_the_layer(dtype, inplace):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5, 6).to(dtype)
    norm = InstanceNorm(3, eps=0.5, inplace=inplace)
    norm = norm.double() if dtype == torch.float64 else norm
    expected = F.instance_norm(x.double(), eps=0.5)
    with torch.inference_mode():
        found = norm(x.clone())
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.02 if dtype == torch.bfloat16 else 1e-4)


def test_gradient_is_the_derivative():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(2, 3, dtype=torch.float64, requires_grad=True).unbind()
    assert torch.autograd.gradcheck(lambda x, w, b: InstanceNormFunction.apply(x, w, b, 1e-5), (x, weight, bias))


@pytest.mark.parametrize(("offset", "std", "tolerance"), [(1.0, 0.01, 1e-4), (100.0, 1.0, 1e-4), (5.0, 0.0, 1e-4)])
def test_keeps_precision_in_large_and_nearly_constant_windows(offset, std, tolerance):
    torch.manual_seed(0)
    x = (torch.randn(1, 2, 40, 80, 80) * std + offset).contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(
        InstanceNorm(2)(x).double(), F.instance_norm(x.double(), eps=1e-5), rtol=0, atol=tolerance
    )


def test_types_other_than_float32_use_torch():
    x = torch.randn(2, 3, 4, 4, 4, dtype=torch.bfloat16)
    assert torch.equal(InstanceNorm(3).bfloat16()(x), F.instance_norm(x, eps=1e-5))


def test_a_single_voxel_is_rejected():
    with pytest.raises(UsageError, match="more than one voxel per channel"):
        InstanceNorm(3)(torch.ones(2, 3, 1, 1, 1))


@pytest.mark.parametrize("chunk", [7, 100, 1 << 20])
def test_in_place_gives_the_same_and_only_without_gradients(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("volseg.networks.cpu.instance_norm.CHUNK", chunk)
    norm, fast = InstanceNorm(3), InstanceNorm(3, inplace=True)
    with torch.no_grad():
        for one in (norm, fast):
            one.weight.copy_(torch.tensor([0.5, 2.0, -1.0]))
            one.bias.copy_(torch.tensor([1.0, 0.0, 3.0]))
    torch.manual_seed(0)
    x = (torch.randn(2, 3, 5, 6, 7) * 3 + 100).contiguous(memory_format=torch.channels_last_3d)
    kept = x.clone()
    assert torch.equal(fast(x).detach(), norm(x).detach())
    assert torch.equal(x, kept)
    with torch.no_grad():
        assert fast(x) is x
    exact = F.instance_norm(kept.double(), weight=fast.weight.double(), bias=fast.bias.double(), eps=1e-5)
    torch.testing.assert_close(x.double(), exact.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk", [100, 1 << 20])
def test_in_place_in_bfloat16_its_sums_are_float32(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not convolves_bfloat16():
        pytest.skip("oneDNN has no bfloat16 for this processor")
    monkeypatch.setattr("volseg.networks.cpu.instance_norm.CHUNK", chunk)
    torch.manual_seed(0)
    norm = InstanceNorm(3, inplace=True)
    x = (torch.randn(2, 3, 9, 20, 21) * 0.5 + 10).bfloat16().contiguous(memory_format=torch.channels_last_3d)
    expected = F.instance_norm(x.double(), eps=1e-5)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert norm(x) is x
    # The only error is rounding the result once: half a unit in the last of 8 binary places.
    torch.testing.assert_close(x.double(), expected, rtol=2**-8, atol=1e-5)
