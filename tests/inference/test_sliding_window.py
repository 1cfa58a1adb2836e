"""`sliding_window` around any torch module, against one pass and against all windows at once."""

import pytest
import torch
from torch import nn

from tests.inference.test_engine import full_logits
from volseg.errors import UsageError, VolsegError
from volseg.inference import sliding_window
from volseg.inference.windows import Windows, window_starts
from volseg.networks import UNet

PATCH = (8, 12, 10)
# Longest along each axis, and smaller than a window.
SHAPES = [(30, 12, 14), (9, 31, 13), (10, 14, 29), (5, 20, 6)]


def volume_of(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


class Plain(nn.Module):
    """A network whose output depends on the whole window."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(2, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) / (1 + x.std((1, 2, 3, 4), keepdim=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_pointwise_network_gives_what_it_gives_in_one_pass_whatever_the_longest_axis(shape):
    network = nn.Conv3d(2, 3, 1).eval()
    volume = volume_of(2, *shape)
    logits = sliding_window(volume, network, PATCH)
    assert logits.shape == (3, *shape)
    torch.testing.assert_close(logits, network(volume[None])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.7])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_gaussian_average_of_all_windows(shape, overlap):
    network, volume = Plain().eval(), volume_of(2, *shape)
    with torch.no_grad():
        expected = full_logits(volume, network, Windows(PATCH, overlap))
    found = sliding_window(volume, network, PATCH, overlap)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)


def test_a_batch_is_each_volume_on_its_own():
    network, volumes = Plain().eval(), volume_of(3, 2, 9, 20, 12)
    together = sliding_window(volumes, network, PATCH, batch_size=2)
    each = torch.stack([sliding_window(one, network, PATCH) for one in volumes])
    torch.testing.assert_close(together, each, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("classes", [3, 40])
def test_a_unet_gives_the_same_with_its_last_layer_before_or_after_blending(classes):
    network = UNet(in_channels=1, classes=classes, features=[8, 16]).eval()
    volume = volume_of(1, 20, 24, 16)
    hidden = nn.Sequential(network)  # no U-Net by its class, so its last layer runs in each window
    hidden.eval()
    torch.testing.assert_close(
        sliding_window(volume, network, (16, 16, 16)),
        sliding_window(volume, hidden, (16, 16, 16)),
        rtol=1e-4,
        atol=1e-4,
    )


def test_flips_are_averaged():
    network, volume = Plain().eval(), volume_of(2, *PATCH)
    expected = (network(volume[None]) + network(volume[None].flip(3)).flip(3)) / 2
    torch.testing.assert_close(
        sliding_window(volume, network, PATCH, mirror_axes=[1])[None], expected, rtol=1e-5, atol=1e-5
    )


def test_the_logits_may_take_part_in_autograd_and_progress_ends_at_one():
    told = []
    logits = sliding_window(volume_of(2, 9, 20, 12), Plain().eval(), PATCH, progress=lambda *said: told.append(said[1]))
    weight = torch.ones(3, requires_grad=True)
    (weight.view(3, 1, 1, 1) * logits).sum().backward()
    torch.testing.assert_close(weight.grad, logits.sum(dim=(1, 2, 3)), rtol=1e-4, atol=1e-2)
    assert told[-1] == 1
    assert told == sorted(told)


class Several(nn.Module):
    """A deeply supervised network that returns a list in evaluation mode, too."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x, x[..., ::2]]


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (nn.Identity().train(), {}, "training mode; call network.eval"),
        (Several().eval(), {}, "returned list for windows .* expected one tensor"),
        (nn.AvgPool3d(2).eval(), {}, "returned .*, expected one tensor"),
        (nn.Identity().eval(), {"mirror_axes": [-1]}, "mirror axes are .-1,., expected some of 0, 1 and 2"),
        (nn.Identity().eval(), {"mirror_axes": [0, 0]}, "each only once"),
        (nn.Flatten(0, 1).eval(), {}, "expected one tensor"),
        (nn.Identity().eval(), {"overlap": 1.0}, "overlap is 1.0, expected 0 to <1"),
        (nn.Identity().eval(), {"patch_size": (8, 8)}, "patch size is .8, 8., expected three sizes"),
        (nn.Identity().eval(), {"volume": torch.zeros(8, 8, 8)}, "volume has 3 axes, expected"),
        (nn.Identity().eval(), {"precision": "half"}, "Unknown precision 'half'"),
    ],
)
def test_wrong_calls_are_rejected(network, options, message):
    arguments = {"volume": torch.zeros(1, 9, 20, 12), "patch_size": PATCH} | options
    with pytest.raises(UsageError, match=message):
        sliding_window(network=network, **arguments)


def test_output_that_is_not_finite_is_rejected():
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / 0

    with pytest.raises(VolsegError, match="contains NaN or Inf"):
        sliding_window(volume_of(1, 9, 20, 12), Broken().eval(), PATCH)


class Probabilities(UNet):
    """A U-Net whose output is not that of its last layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).softmax(1)


@pytest.mark.parametrize("classes", [3, 20])
def test_the_forward_of_a_subclass_or_a_hook_is_what_counts(classes):
    torch.manual_seed(0)
    network, volume = Probabilities(classes=classes, features=[8, 16]).eval(), volume_of(1, 20, 24, 16)
    assert torch.allclose(sliding_window(volume, network, (16, 16, 16)).sum(0), torch.ones(20, 24, 16), atol=1e-5)
    hooked = UNet(classes=classes, features=[8, 16]).eval()
    hooked.register_forward_hook(lambda _module, _inputs, output: output.softmax(1))
    assert torch.allclose(sliding_window(volume, hooked, (16, 16, 16)).sum(0), torch.ones(20, 24, 16), atol=1e-5)


def test_an_overlap_near_one_repeats_no_window():
    volume, network = volume_of(1, 12, 11, 10), nn.Identity().eval()
    torch.testing.assert_close(sliding_window(volume, network, (8, 8, 8), 0.999), volume, rtol=1e-5, atol=1e-5)
    for size in (8, 9, 20):
        starts = window_starts(size, 8, 0.999)
        assert starts == sorted(set(starts))
        assert (starts[0], starts[-1]) == (0, size - 8)
