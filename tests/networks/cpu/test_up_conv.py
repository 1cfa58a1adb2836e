"""Upsampling with skip concatenation against torch's."""

import pytest
import torch

from volseg.networks.cpu.up_conv import UpConv


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (2, 1, 3)])
def test_without_gradients_it_equals_upsampling_and_concatenation(stride: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    up = UpConv(6, 4, stride)
    x = torch.randn(2, 6, 3, 5, 4).contiguous(memory_format=torch.channels_last_3d)
    skip = torch.randn(2, 3, *(size * step for size, step in zip((3, 5, 4), stride, strict=True)))
    skip = skip.contiguous(memory_format=torch.channels_last_3d)
    skips = [torch.zeros(1), skip]
    plain = up.concatenate(x, [skip])
    assert plain.grad_fn is not None
    assert torch.equal(plain[:, 4:], skip)
    with torch.no_grad():
        found = up.concatenate(x, skips)
    assert len(skips) == 1
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(found, plain.detach(), rtol=1e-5, atol=1e-5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = up.concatenate(x, [skip.bfloat16()])
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), plain.detach(), rtol=0.02, atol=0.02)
