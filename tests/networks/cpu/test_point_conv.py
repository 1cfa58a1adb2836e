"""The 1 x 1 x 1 convolution against torch's."""

import pytest
import torch
from torch.nn import functional as F

from volseg.networks.cpu.feature_maps import convolves_bfloat16
from volseg.networks.cpu.point_conv import PointConv


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
