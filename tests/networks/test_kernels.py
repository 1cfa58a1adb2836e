"""The layers as a GPU computes them give the same numbers; here on the CPU, with the choices of the GPU."""

import pytest
import torch
from torch.nn import functional as F

from volseg.networks import InstanceNorm, UNet
from volseg.networks.cuda import AvgPool, with_stated_format
from volseg.networks.kernels import KERNELS


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setitem(KERNELS, "cpu", KERNELS["cuda"])


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (2, 1, 1), (3, 2, 1), (1, 1, 1)])
def test_pooling_in_two_steps_is_pooling_in_one(as_on_a_gpu, stride):
    x = torch.randn(2, 3, 7, 6, 9, dtype=torch.float64).contiguous(memory_format=torch.channels_last_3d)
    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, expected = AvgPool(stride)(leaf), F.avg_pool3d(other, stride, ceil_mode=True)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    gradients = [torch.autograd.grad(one.square().sum(), of)[0] for one, of in ((found, leaf), (expected, other))]
    torch.testing.assert_close(*gradients)


def test_the_format_of_a_single_channel_is_stated_without_a_copy(as_on_a_gpu):
    x = torch.randn(2, 1, 3, 4, 5)
    found = with_stated_format(x)
    assert torch.equal(found, x)
    assert found.data_ptr() == x.data_ptr()
    assert found.stride() == (60, 1, 20, 5, 1)
    two = torch.randn(2, 2, 3, 4, 5)
    assert with_stated_format(two) is two


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_norm_by_sample_is_instance_norm_forward_and_backward(as_on_a_gpu, dtype, batch):
    torch.manual_seed(0)
    norm = InstanceNorm(5)
    x = (torch.randn(batch, 5, 4, 6, 7) + 2).to(dtype).contiguous(memory_format=torch.channels_last_3d)
    one, other = x.clone().requires_grad_(), x.double().requires_grad_()
    found = norm(one)
    expected = F.instance_norm(other, weight=norm.weight.double(), bias=norm.bias.double(), eps=norm.eps)
    weights = torch.randn(found.shape)
    found_gradients = torch.autograd.grad((found * weights).sum(), [one, norm.weight, norm.bias])
    gradients = torch.autograd.grad((expected * weights).sum(), [other, norm.weight, norm.bias])
    loose = {"rtol": 0.02, "atol": 0.05} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(found.double(), expected, **loose)
    for mine, theirs in zip(found_gradients, gradients, strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), **loose)


@pytest.mark.parametrize("options", [{}, {"block": "conv2plus1d"}, {"encoder": "residual"}])
def test_a_network_gives_the_same_logits_with_the_choices_of_a_gpu(options, monkeypatch):
    torch.manual_seed(0)
    network = UNet(in_channels=1, classes=3, features=[8, 16, 16], **options).eval()
    x = torch.randn(2, 1, 16, 24, 16)
    with torch.inference_mode():
        expected = network(x)
        monkeypatch.setitem(KERNELS, "cpu", KERNELS["cuda"])
        found = network(x)
        assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_cpu_keeps_its_own_choices():
    cpu, gpu = KERNELS["cpu"], KERNELS["cuda"]
    assert (cpu.by_planes, cpu.onednn, cpu.cudnn) == (True, True, False)
    assert (gpu.by_planes, gpu.onednn, gpu.cudnn) == (False, False, True)
