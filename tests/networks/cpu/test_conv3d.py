"""The 3-D convolution against torch's, for each of its implementations."""

from itertools import accumulate, product

import pytest
import torch
from torch.nn import functional as F

from volseg.networks.cpu import conv3d as conv
from volseg.networks.cpu import winograd
from volseg.networks.cpu.conv3d import Conv
from volseg.networks.cpu.feature_maps import convolves_bfloat16, plain_inference
from volseg.networks.cpu.winograd import FOUR, SIX, TEN, TWO, Scheme

NATIVE = convolves_bfloat16()
needs_bf16 = pytest.mark.skipif(not NATIVE, reason="oneDNN has no bfloat16 for this processor")


@pytest.mark.parametrize(("scheme", "outputs"), [(TWO, 2), (FOUR, 4), (SIX, 6), (TEN, 10)])
def test_the_three_matrices_compute_a_filter_of_three_taps(scheme: Scheme, outputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    signal, taps = torch.randn(outputs + 2, generator=generator), torch.randn(3, generator=generator)
    from_input, from_taps, to_output = (one.double() for one in (scheme.from_input, scheme.from_taps, scheme.to_output))
    found = to_output @ ((from_input @ signal.double()) * (from_taps @ taps.double()))
    expected = F.conv1d(signal.view(1, 1, -1), taps.view(1, 1, 3)).flatten()
    assert scheme.outputs == outputs
    torch.testing.assert_close(found.float(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("depth", "tens", "sixes", "fours"),
    [
        (8, 0, 0, 2),
        (9, 1, 0, 0),
        (10, 1, 0, 0),
        (14, 1, 0, 1),
        (16, 1, 1, 0),
        (20, 2, 0, 0),
        (24, 2, 0, 1),
        (40, 4, 0, 0),
    ],
)
def test_training_covers_the_depth_with_the_fewest_products(depth: int, tens: int, sixes: int, fours: int) -> None:
    counts = {scheme: count for scheme, count in zip((TEN, SIX, FOUR), (tens, sixes, fours), strict=True) if count}
    assert winograd.schemes_to_train(depth) == list(counts)
    x = torch.empty(3, depth, 1, 1, 16)
    tiles = [(scheme, one) for scheme, some in winograd.tiles_of(x, counts) for one in some]
    assert [scheme for scheme, (b, _) in tiles if b == 2] == [s for s, count in counts.items() for _ in range(count)]
    for b in range(3):
        starts = [start for _, (of, start) in tiles if of == b]
        assert starts == [0, *accumulate(s.outputs for s, (of, _) in tiles if of == b)][:-1]
    products = sum(count * (scheme.outputs + 2) for scheme, count in counts.items())
    fewest = min(
        12 * a + 8 * b + 6 * c for a, b, c in product(range(depth), repeat=3) if 10 * a + 6 * b + 4 * c >= depth
    )
    assert products == fewest


def test_inference_uses_the_better_of_four_and_six_planes() -> None:
    chosen = {depth: winograd.scheme_to_predict(depth, torch.float32) for depth in (8, 9, 12, 16, 20, 40, 96)}
    assert chosen == {8: FOUR, 9: SIX, 12: SIX, 16: FOUR, 20: FOUR, 40: SIX, 96: SIX}
    assert winograd.scheme_to_predict(96, torch.bfloat16) is TWO


def layer_of(channels: int, bias: bool, kernel=(3, 3, 3), stride=(1, 1, 1)) -> Conv:
    torch.manual_seed(channels)
    made = Conv(channels, 7, kernel, stride, tuple(size // 2 for size in kernel), bias=bias)
    made.weight.data = made.weight.data.contiguous(memory_format=torch.channels_last_3d)
    return made


def assert_same(layer: Conv, x: torch.Tensor) -> None:
    x = x.contiguous(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        found = layer(x)
        bias = None if layer.bias is None else layer.bias.double()
        expected = F.conv3d(x.double(), layer.weight.double(), bias, layer.stride, layer.padding)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    assert float((found - expected).abs().max()) < 2e-5 * float(expected.abs().max())


@pytest.mark.parametrize("shape", [(8, 15, 16), (9, 14, 13), (10, 12, 14), (11, 12, 13), (24, 9, 8)])
@pytest.mark.parametrize("bias", [False, True])
def test_large_inputs_by_winograd_equal_the_plain_convolution(shape: tuple[int, int, int], bias: bool) -> None:
    x = torch.randn(2, 16, *shape)
    assert winograd.is_faster(x)
    assert_same(layer_of(16, bias), x)


@pytest.mark.parametrize("large", [1, 1 << 22])
@pytest.mark.parametrize("shape", [(1, 33, 20, 20), (1, 16, 9, 9), (16, 6, 6, 6), (16, 4, 30, 30)])
def test_small_inputs_and_few_channels_are_the_plain_convolution(shape, large, monkeypatch) -> None:
    monkeypatch.setattr(conv, "LARGE", large)
    x = torch.randn(1, *shape)
    assert not winograd.is_faster(x)
    assert_same(layer_of(shape[0], True), x)


@pytest.mark.parametrize(
    ("kernel", "stride"),
    [((3, 3, 3), (2, 2, 2)), ((3, 3, 3), (1, 2, 2)), ((1, 1, 1), (1, 1, 1)), ((3, 1, 5), (2, 1, 1))],
)
def test_other_kernels_and_strides(kernel, stride) -> None:
    assert_same(layer_of(16, False, kernel, stride), torch.randn(1, 16, 12, 14, 10))


@pytest.mark.parametrize("chunk", [1, 1 << 21])
@pytest.mark.parametrize("shape", [(8, 15, 16), (9, 14, 13), (24, 9, 8)])
def test_the_sums_written_out_for_bfloat16_are_right_on_any_processor(shape, chunk: int, monkeypatch) -> None:
    monkeypatch.setitem(winograd.CHUNK, torch.float32, chunk)
    layer, x = layer_of(16, False), torch.randn(1, 16, *shape)
    found = torch.empty(*shape, 7)
    with torch.no_grad():
        filters = winograd.filters_of(layer.weight, [TWO], torch.float32)
        winograd._by_two(x[0].movedim(0, -1).contiguous(), filters[TWO], found)
        torch.testing.assert_close(found.movedim(-1, 0)[None], layer(x), rtol=1e-4, atol=1e-5)


@needs_bf16
@pytest.mark.parametrize("chunk", [1, 1 << 21])
@pytest.mark.parametrize("shape", [(8, 15, 16), (9, 14, 13), (24, 9, 8)])
def test_in_bfloat16_two_planes_are_computed_at_a_time(shape, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(winograd.CHUNK, torch.bfloat16, chunk)
    layer, x = layer_of(16, True), torch.randn(2, 16, *shape).contiguous(memory_format=torch.channels_last_3d)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
        plain = layer._whole(x.bfloat16(), layer.weight.bfloat16())
    expected = F.conv3d(x.double(), layer.weight.double(), layer.bias.double(), padding=1).detach()
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    error, plain_error = (float((one - expected).square().mean().sqrt()) for one in (found, plain))
    assert 0 < error < 3 * plain_error < 0.01 * float(expected.std())


@needs_bf16
@pytest.mark.parametrize(("kernel", "stride"), [((3, 3, 3), (2, 2, 2)), ((1, 1, 1), (1, 1, 1)), ((3, 3, 3), (1, 1, 1))])
def test_other_convolutions_in_bfloat16(kernel, stride) -> None:
    layer, x = layer_of(16, True, kernel, stride), torch.randn(1, 16, 6, 9, 8).to(memory_format=torch.channels_last_3d)
    expected = F.conv3d(x.double(), layer.weight.double(), layer.bias.double(), layer.stride, layer.padding).detach()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.bfloat16
    assert float((found - expected).abs().max()) < 0.02 * float(expected.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)])
def test_filters_follow_the_weight(dtype: torch.dtype) -> None:
    layer, x = layer_of(16, False), torch.ones(1, 16, 8, 14, 14).contiguous(memory_format=torch.channels_last_3d)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        before = layer(x)
        kept = layer._filters
        assert torch.equal(layer(x), before)
        assert layer._filters is kept
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x), 2 * before)


@pytest.mark.parametrize("chunk", [1, 1 << 21])
@pytest.mark.parametrize("shape", [(8, 15, 16), (9, 14, 13), (10, 12, 14), (11, 12, 13)])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_in_float32_are_those_of_the_plain_convolution(shape, bias, chunk, monkeypatch) -> None:
    monkeypatch.setitem(winograd.CHUNK, torch.float32, chunk)
    layer = layer_of(16, bias)
    x = torch.randn(2, 16, *shape).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    gradient = torch.randn(2, 7, *shape)
    found = layer(x)
    assert type(found.grad_fn).__name__ == ("AddBackward0" if bias else "WinogradConvBackward")
    wanted = [x, *layer.parameters()]
    gradients = torch.autograd.grad(found, wanted, gradient)
    exact = [one.detach().double().requires_grad_() for one in wanted]
    plain = F.conv3d(*exact, padding=1)
    most = 1e-4 if TEN in winograd.schemes_to_train(shape[0]) else 2e-5
    for one, other in zip(gradients, torch.autograd.grad(plain, exact, gradient.double()), strict=True):
        assert float((one - other).abs().max()) < most * float(other.abs().max())
    assert float((found - plain).detach().abs().max()) < most * float(plain.detach().abs().max())


@pytest.mark.parametrize("frozen", ["input", "weight"])
def test_gradients_with_a_frozen_input_or_weight(frozen: str) -> None:
    layer, x = layer_of(16, False), torch.randn(1, 16, 8, 15, 16).contiguous(memory_format=torch.channels_last_3d)
    wanted = layer.weight if frozen == "input" else x.requires_grad_()
    layer.weight.requires_grad_(frozen == "input")
    layer(x).square().sum().backward()
    expected = torch.autograd.grad(F.conv3d(x, layer.weight, padding=1).square().sum(), wanted)[0]
    torch.testing.assert_close(wanted.grad, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_training_in_other_formats_and_types_is_left_to_torch() -> None:
    layer = layer_of(16, False)
    x = torch.randn(1, 16, 8, 15, 16)
    assert type(layer(x).grad_fn).__name__ == "ConvolutionBackward0"
    x = x.contiguous(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", torch.bfloat16):
        assert type(layer(x).grad_fn).__name__ != "WinogradConvBackward"
    assert type(layer.double()(x.double()).grad_fn).__name__ == "ConvolutionBackward0"


def test_the_fast_layers_need_no_gradients_and_a_format_of_onednn() -> None:
    x = torch.randn(1, 16, 12, 12, 12).contiguous(memory_format=torch.channels_last_3d)
    assert plain_inference(x) is None
    with torch.no_grad():
        assert plain_inference(x) == torch.float32
        assert plain_inference(x.contiguous()) is None
        assert plain_inference(x.bfloat16()) is None
        assert plain_inference(x.double()) is None
        with torch.autocast("cpu", torch.float16):
            assert plain_inference(x) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert plain_inference(x) == (torch.bfloat16 if NATIVE else None)
    layer = layer_of(16, False)
    gradient = torch.autograd.grad(F.conv3d(x, layer.weight, padding=1).sum(), layer.weight)[0]
    layer(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


@needs_bf16
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [1, 2, 3, 16])
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2)])
def test_a_single_plane_in_bfloat16_is_right(channels, stride, training) -> None:
    layer, x = layer_of(channels, True, stride=stride), torch.randn(2, channels, 1, 12, 14)
    expected = F.conv3d(x, layer.weight, layer.bias, stride, 1)
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found.float(), expected, rtol=0.03, atol=0.03)


def leave_nan_behind() -> None:
    """Fill memory that is freed, so that what reads it shows."""
    for size in (1 << 8, 1 << 10, 1 << 12, 1 << 14, 1 << 18):
        del [torch.full((size,), torch.nan, dtype=torch.bfloat16) for _ in range(4)][:]


@needs_bf16
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 3, 16])
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (1, 2, 2)])
def test_outputs_of_one_or_two_columns_in_bfloat16_are_right(channels, width, stride, training) -> None:
    layer, x = layer_of(channels, True, stride=stride), torch.randn(2, channels, 5, 8, width)
    expected = F.conv3d(x, layer.weight, layer.bias, stride, 1)
    downstream = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(expected, layer.weight, downstream)
    leave_nan_behind()
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.03, atol=0.03)
    if training:
        leave_nan_behind()
        (found_gradient,) = torch.autograd.grad(found, layer.weight, downstream.bfloat16())
        torch.testing.assert_close(found_gradient, gradient, rtol=0.03, atol=0.03 * float(gradient.abs().max()))
