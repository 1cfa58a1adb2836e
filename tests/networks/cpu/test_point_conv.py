"""The 1 x 1 x 1 convolution against torch's."""

import pytest
import torch
from torch.nn import functional as F

from volseg.networks.cpu.feature_maps import convolves_bfloat16
from volseg.networks.cpu.point_conv import PointConv
from volseg.networks.kernels import KERNELS, Kernels


def test_it_equals_the_convolution_in_every_format() -> None:
    torch.manual_seed(0)
    layer = PointConv(6, 4)
    x = torch.randn(2, 6, 3, 5, 4)
    expected = F.conv3d(x, layer.weight, layer.bias)
    for form in (torch.contiguous_format, torch.channels_last_3d):
        with torch.inference_mode():
            torch.testing.assert_close(layer(x.contiguous(memory_format=form)), expected.detach())
    gradient = torch.autograd.grad(F.conv3d(x, layer.weight, layer.bias).square().sum(), layer.weight)[0]
    layer(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [7, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_as_on_a_gpu_logits_of_half_maps_are_float32_and_so_are_gradients_of_the_weights(
    rows: int, dtype: torch.dtype, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KERNELS, "cpu", Kernels(head_rows=rows))
    torch.manual_seed(0)
    layer = PointConv(6, 4)
    x = torch.randn(2, 6, 3, 5, 4).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
    exact = x.detach().float().requires_grad_()
    expected = F.conv3d(exact, layer.weight, layer.bias)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    weights = torch.autograd.grad(expected.square().sum(), [exact, layer.weight, layer.bias])
    found.square().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    torch.testing.assert_close(x.grad, weights[0].to(dtype))
    torch.testing.assert_close(layer.weight.grad, weights[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.bias.grad, weights[2], rtol=1e-4, atol=1e-4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x.float()), expected.detach())


def test_logits_are_float32_for_bfloat16_maps() -> None:
    if not convolves_bfloat16():
        pytest.skip("oneDNN has no bfloat16 for this processor")
    torch.manual_seed(0)
    layer = PointConv(6, 4)
    x = torch.randn(2, 6, 3, 5, 4).bfloat16().contiguous(memory_format=torch.channels_last_3d)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, F.conv3d(x.float(), layer.weight, layer.bias).detach())
