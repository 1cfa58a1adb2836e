"""The faster 3 x 3 x 3 convolution against the plain one."""

import pytest
import torch
from torch.nn import functional as F

from volseg.networks import winograd
from volseg.networks.maps import is_plain_inference
from volseg.networks.winograd import FROM_INPUT, FROM_TAPS, TO_OUTPUT, CubeConv


def test_the_three_matrices_make_a_filter_of_three_taps() -> None:
    generator = torch.Generator().manual_seed(0)
    signal, taps = torch.randn(6, generator=generator), torch.randn(3, generator=generator)
    products = (torch.tensor(FROM_INPUT) @ signal) * (torch.tensor(FROM_TAPS) @ taps)
    expected = F.conv1d(signal.view(1, 1, 6), taps.view(1, 1, 3)).flatten()
    torch.testing.assert_close(torch.tensor(TO_OUTPUT) @ products, expected, rtol=1e-5, atol=1e-5)


def conv(channels: int, out: int, bias: bool) -> CubeConv:
    torch.manual_seed(channels)
    made = CubeConv(channels, out, 3, padding=1, bias=bias)
    made.weight.data = made.weight.data.contiguous(memory_format=torch.channels_last_3d)
    return made


@pytest.mark.parametrize("shape", [(8, 15, 16), (9, 14, 13), (10, 12, 14), (11, 12, 13), (24, 9, 8)])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_plain_convolution(shape: tuple[int, int, int], bias: bool) -> None:
    layer = conv(16, 7, bias)
    x = torch.randn(2, 16, *shape).contiguous(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        assert winograd.pays(x)
        found = layer(x)
        expected = F.conv3d(
            x.double(), layer.weight.double(), layer.bias if bias is False else layer.bias.double(), 1, 1
        )
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    assert float((found - expected).abs().max()) < 2e-5 * float(expected.abs().max())


def test_gradients_half_precision_and_other_formats_are_left_to_torch() -> None:
    x = torch.randn(1, 16, 12, 12, 12).contiguous(memory_format=torch.channels_last_3d)
    assert not is_plain_inference(x)
    with torch.no_grad():
        assert is_plain_inference(x)
        assert not is_plain_inference(x.contiguous())
        assert not is_plain_inference(x.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            assert not is_plain_inference(x)
    layer = conv(16, 4, False)
    layer(x).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("large", [1, 1 << 22])
@pytest.mark.parametrize("shape", [(1, 33, 20, 20), (1, 16, 9, 9), (16, 6, 6, 6), (16, 4, 30, 30)])
def test_small_inputs_and_few_channels_are_the_plain_convolution(shape, large, monkeypatch) -> None:
    monkeypatch.setattr(winograd, "LARGE", large)
    layer = conv(shape[0], 5, True)
    x = torch.randn(1, *shape).contiguous(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        assert not winograd.pays(x)
        torch.testing.assert_close(layer(x), F.conv3d(x, layer.weight, layer.bias, 1, 1), rtol=1e-4, atol=1e-5)
