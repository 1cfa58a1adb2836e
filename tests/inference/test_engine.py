"""Sliding windows, blending and resampling against the plain computation on the full volume."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from volseg.data.grid.resample import nearest_index
from volseg.errors import VolsegError
from volseg.inference.engine import Target
from volseg.inference.engine import segment as label_planes
from volseg.inference.stream import Engine, Head, Predictor, averaged_over_flips, stream_logits, stream_order
from volseg.inference.upsample import last_present
from volseg.inference.windows import Windows, gaussian, window_starts

Triple = tuple[int, int, int]
CPU = torch.device("cpu")
PATCH = (4, 6, 5)


def predictor_of(classes: int, channels: int = 1) -> Callable[[torch.Tensor], torch.Tensor]:
    """A small random network whose output depends on the whole window, as with instance norm."""
    generator = torch.Generator().manual_seed(classes)
    weight = torch.randn(classes, channels, 3, 3, 3, generator=generator)
    ramp = torch.randn(classes, *PATCH, generator=generator)

    def predict(batch: torch.Tensor) -> torch.Tensor:
        output = F.conv3d(batch, weight, padding=1)
        return output / (1 + batch.std((1, 2, 3, 4), keepdim=True)) + ramp

    return predict


def segment(volume: torch.Tensor, network, windows: Windows, box: Triple, progress=None, **options) -> torch.Tensor:
    """All planes of labels, concatenated, in network order (D, H, W)."""
    predictor = network if isinstance(network, Predictor) else Predictor(network)
    engine = Engine(predictor, windows, CPU, progress=progress)
    planes = [labels for _, labels in label_planes(volume, engine, Target(box, **options))]
    order = stream_order(tuple(volume.shape[1:]))
    return torch.cat(planes).permute(*(order.index(axis) for axis in range(3)))


def full_logits(
    volume: torch.Tensor, predictor: Callable[[torch.Tensor], torch.Tensor], windows: Windows
) -> torch.Tensor:
    """The weighted sum of all windows of the padded volume in float64, divided by the sum of the weights."""
    missing = [max(0, patch - size) for size, patch in zip(volume.shape[1:], windows.patch_size, strict=True)]
    below = [miss // 2 for miss in missing]
    above = [miss - low for miss, low in zip(missing, below, strict=True)]
    padded = F.pad(volume, [side for axis in (2, 1, 0) for side in (below[axis], above[axis])])
    gd, gh, gw = (gaussian(patch).double() for patch in windows.patch_size)
    weight = gd[:, None, None] * gh[:, None] * gw
    starts = [window_starts(padded.shape[i + 1], windows.patch_size[i], windows.overlap) for i in range(3)]
    total = count = torch.zeros(())
    for place in product(*starts):
        part = (slice(None), *(slice(a, a + p) for a, p in zip(place, windows.patch_size, strict=True)))
        output = predictor(padded[part][None])[0].double()
        if total.ndim == 0:
            total = torch.zeros(output.shape[0], *padded.shape[1:], dtype=torch.float64)
            count = torch.zeros(1, *padded.shape[1:], dtype=torch.float64)
        total[part] += output * weight
        count[part] += weight
    kept = tuple(slice(low, low + size) for low, size in zip(below, volume.shape[1:], strict=True))
    return (total / count)[(slice(None), *kept)]


def gathered(volume: torch.Tensor, predictor, windows: Windows, axis: int) -> torch.Tensor:
    """All slabs of a stream, concatenated, in network order."""
    order = (axis, *(other for other in range(3) if other != axis))
    predictor = predictor if isinstance(predictor, Predictor) else Predictor(predictor)
    slabs = [(start, slab.clone()) for start, slab in stream_logits(volume, Engine(predictor, windows, CPU), order)]
    ends = [start + slab.shape[1] for start, slab in slabs]
    assert [start for start, _ in slabs] == [0, *ends[:-1]]
    return torch.cat([slab for _, slab in slabs], dim=1).movedim(1, axis + 1)


# Smaller than the window, one voxel thick, equal to the window, one voxel larger, not a multiple of it.
AWKWARD = [(1, 1, 1), (3, 2, 4), (4, 6, 5), (5, 7, 6), (1, 7, 13), (13, 1, 6), (9, 17, 3), (10, 11, 23), (19, 8, 11)]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", AWKWARD)
def test_streamed_logits_are_those_of_the_full_volume(shape: Triple, axis: int) -> None:
    volume = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    windows = Windows(PATCH, batch_size=3)
    predictor = predictor_of(4, channels=2)
    expected = full_logits(volume, predictor, windows)
    torch.testing.assert_close(gathered(volume, predictor, windows, axis).double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("shape", "overlap"), [*((shape, 0.5) for shape in AWKWARD), *(((9, 8, 6), other) for other in (0.0, 0.25, 0.75))]
)
def test_labels_are_those_of_the_full_volume(shape: Triple, overlap: float) -> None:
    volume = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    windows, predictor = Windows(PATCH, overlap, batch_size=2), predictor_of(5)
    logits = full_logits(volume, predictor, windows)
    for box in (shape, tuple(2 * size + 1 for size in shape), tuple(max(1, size // 2) for size in shape), (7, 1, 30)):
        labels = segment(volume, predictor, windows, box)
        full = F.interpolate(logits[None], size=box, mode="trilinear", align_corners=False)[0]
        chosen = full.gather(0, labels.long()[None])[0]
        assert labels.shape == box
        assert bool((chosen >= full.amax(0) - 2e-5).all())
        clear = full.topk(2, dim=0).values.diff(dim=0)[0].abs() > 4e-5
        assert torch.equal(labels.long()[clear], full.argmax(0)[clear])


@pytest.mark.parametrize("nearest_axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(6, 11, 9), (15, 6, 4), (5, 6, 13)])
def test_nearest_axis_is_an_axis_of_the_volume(shape: Triple, nearest_axis: int) -> None:
    volume = torch.randn(1, *shape, generator=torch.Generator().manual_seed(2))
    windows, predictor = Windows(PATCH), predictor_of(3)
    box = (11, 13, 20)
    nearest = nearest_index(shape[nearest_axis], box[nearest_axis], CPU)
    logits = full_logits(volume, predictor, windows).index_select(nearest_axis + 1, nearest)
    full = F.interpolate(logits[None], size=box, mode="trilinear", align_corners=False)[0]
    labels = segment(volume, predictor, windows, box, nearest_axis=nearest_axis)
    assert bool((full.gather(0, labels.long()[None])[0] >= full.amax(0) - 2e-5).all())


def test_nearest_slices_follow_the_rule_where_it_decides() -> None:
    volume = torch.randn(1, 26, 5, 5, generator=torch.Generator().manual_seed(2))
    windows, predictor, box = Windows(PATCH), predictor_of(3), (11, 5, 5)
    chosen = {}
    for rule in ("scipy", "torch"):
        nearest = nearest_index(26, 11, CPU, rule)
        expected = full_logits(volume, predictor, windows).index_select(1, nearest).argmax(0)
        labels = segment(volume, predictor, windows, box, nearest_axis=0, rule=rule)
        assert torch.equal(labels.long(), expected)
        chosen[rule] = labels
    assert not torch.equal(chosen["scipy"], chosen["torch"])


def test_a_constant_output_stays_constant() -> None:
    def constant(batch: torch.Tensor) -> torch.Tensor:
        return torch.tensor([0.5, 3.0, -1.0]).reshape(1, 3, 1, 1, 1).expand(len(batch), 3, *batch.shape[2:])

    volume = torch.randn(1, 9, 14, 7)
    logits = gathered(volume, constant, Windows(PATCH), axis=1)
    torch.testing.assert_close(
        logits, torch.tensor([0.5, 3.0, -1.0]).reshape(3, 1, 1, 1).expand_as(logits), rtol=1e-6, atol=0
    )
    assert segment(volume, constant, Windows(PATCH), (20, 20, 20)).unique().tolist() == [1]


def test_an_identity_network_gives_the_volume() -> None:
    volume = torch.randn(1, 9, 14, 7)
    windows = Windows(PATCH, batch_size=4)
    logits = gathered(volume, lambda batch: torch.cat([batch, -batch], dim=1), windows, axis=1)
    torch.testing.assert_close(logits[:1], volume, rtol=1e-6, atol=1e-6)
    labels = segment(volume, lambda batch: torch.cat([batch, -batch], dim=1), windows, (9, 14, 7))
    assert torch.equal(labels, (volume[0] < 0).to(torch.uint8))


def test_a_single_window_is_not_changed_by_its_weights() -> None:
    volume = torch.randn(1, *PATCH)
    assert torch.equal(gathered(volume, predictor_of(3), Windows(PATCH), axis=0), predictor_of(3)(volume[None])[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_are_summed_in_float32(dtype: torch.dtype) -> None:
    volume = torch.randn(1, 9, 7, 11)
    network = predictor_of(3)

    def rounded(batch: torch.Tensor) -> torch.Tensor:
        return network(batch).to(dtype)

    windows = Windows(PATCH)
    torch.testing.assert_close(
        gathered(volume, rounded, windows, 2).double(), full_logits(volume, rounded, windows), rtol=0, atol=1e-5
    )


def test_constant_windows_are_computed_once_and_exactly() -> None:
    volume = torch.full((1, 40, 6, 5), -1.0)
    volume[:, 18:23] = torch.randn(1, 5, 6, 5)
    seen: list[int] = []
    network = predictor_of(4)

    def counting(batch: torch.Tensor) -> torch.Tensor:
        seen.append(len(batch))
        return network(batch)

    windows = Windows(PATCH)
    logits = gathered(volume, counting, windows, axis=0)
    mixed = sum(1 for start in window_starts(40, 4, 0.5) if start + 4 > 18 and start < 23)
    assert sum(seen) == mixed + 1
    torch.testing.assert_close(logits.double(), full_logits(volume, network, windows), rtol=0, atol=2e-5)
    # With noise far below rounding no window is constant: the same outputs, each computed.
    noisy = volume + torch.randn(volume.shape) * 1e-7
    torch.testing.assert_close(logits, gathered(noisy, network, windows, axis=0), rtol=0, atol=2e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("axes", [(0,), (2,), (0, 1), (0, 1, 2)])
def test_flips_are_averaged(axes: tuple[int, ...], batch_size: int) -> None:
    network = predictor_of(3)
    calls: list[int] = []

    def counting(batch: torch.Tensor) -> torch.Tensor:
        calls.append(len(batch))
        return network(batch)

    batch = torch.randn(max(1, batch_size >> len(axes)), 1, *PATCH)
    chosen = [
        [axis + 2 for axis, use in zip(axes, uses, strict=True) if use] for uses in product([0, 1], repeat=len(axes))
    ]
    expected = torch.stack([network(batch.flip(flip)).flip(flip) for flip in chosen]).mean(0)
    windows = Windows(PATCH, batch_size=batch_size, mirror_axes=tuple(axes))
    torch.testing.assert_close(averaged_over_flips(counting, windows)(batch), expected, rtol=1e-5, atol=1e-5)
    assert max(calls) <= batch_size
    assert sum(calls) == len(batch) * 2 ** len(axes)


def test_a_flipped_volume_gives_flipped_labels() -> None:
    volume = torch.randn(1, 12, 6, 5)
    # Symmetric about the centre of the window, so that blending flipped windows equals flipping the blend.
    windows = Windows(PATCH, overlap=0.0, mirror_axes=(0, 1, 2), batch_size=8)
    labels = segment(volume, predictor_of(4), windows, (12, 6, 5))
    assert torch.equal(segment(volume.flip(1, 3), predictor_of(4), windows, (12, 6, 5)), labels.flip(0, 2))


def test_progress_counts_every_window() -> None:
    seen: list[tuple[int, int]] = []
    segment(
        torch.randn(1, 10, 6, 6),
        predictor_of(2),
        Windows(PATCH, batch_size=3),
        (10, 6, 6),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 8) for done in range(1, 9)]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_outputs_with_nan_or_inf_are_rejected(wrong: float) -> None:
    def broken(batch: torch.Tensor) -> torch.Tensor:
        output = predictor_of(3)(batch)
        output[0, 1, 2, 2, 2] = wrong
        return output

    with pytest.raises(VolsegError, match="contains NaN or Inf"):
        segment(torch.randn(1, 9, 6, 5), broken, Windows(PATCH), (9, 6, 5))


def test_a_head_after_blending_equals_a_head_before_blending() -> None:
    volume = torch.randn(1, 19, 8, 11)
    generator = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(7, 3, generator=generator), torch.randn(7, generator=generator)
    features = predictor_of(3)

    def logits(batch: torch.Tensor) -> torch.Tensor:
        return F.conv3d(features(batch), weight[:, :, None, None, None], bias)

    after = Predictor(features, Head(weight, bias))
    for axis in range(3):
        expected = gathered(volume, logits, Windows(PATCH), axis)
        torch.testing.assert_close(gathered(volume, after, Windows(PATCH), axis), expected, rtol=0, atol=2e-5)


def test_regions_overlap_and_later_ones_overwrite_earlier_ones() -> None:
    volume = torch.randn(1, 9, 8, 11, generator=torch.Generator().manual_seed(4))
    windows, predictor, box = Windows(PATCH), predictor_of(3), (13, 8, 5)
    logits = F.interpolate(
        full_logits(volume, predictor, windows)[None], size=box, mode="trilinear", align_corners=False
    )[0]
    expected = torch.zeros(box, dtype=torch.uint8)
    for region in range(3):
        expected[torch.sigmoid(logits[region]) > 0.5] = region + 1
    clear = logits.abs().amin(0) > 2e-5
    labels = segment(volume, predictor, windows, box, decide=last_present)
    assert torch.equal(labels[clear], expected[clear])
    assert clear.float().mean() > 0.99


@pytest.mark.parametrize("shape", [(6, 11, 9), (15, 6, 4)])
def test_a_sink_sees_every_logit_once_and_changes_no_label(shape: Triple) -> None:
    volume = torch.randn(1, *shape, generator=torch.Generator().manual_seed(5))
    windows, predictor, box = Windows(PATCH), predictor_of(4), (11, 13, 20)
    order = stream_order(shape)
    seen = torch.full((4, *(box[axis] for axis in order)), float("nan"))

    def sink(plane: int, rows: slice, logits: torch.Tensor) -> None:
        assert bool(seen[:, plane, rows].isnan().all())
        seen[:, plane, rows] = logits

    labels = segment(volume, predictor, windows, box, sink=sink)
    full = F.interpolate(full_logits(volume, predictor, windows)[None], size=box, mode="trilinear")[0]
    torch.testing.assert_close(seen.double(), full.permute(0, *(axis + 1 for axis in order)), rtol=0, atol=2e-5)
    assert (labels != segment(volume, predictor, windows, box)).float().mean() < 1e-3


class LargestAllocation(TorchDispatchMode):
    """The largest tensor in bytes that any operation returned, except the volume and the labels."""

    def __init__(self, volume: torch.Tensor, label_bytes: int) -> None:
        super().__init__()
        self.left_out = {volume.untyped_storage().data_ptr()}
        self.label_bytes = label_bytes
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(one, torch.Tensor) and one.untyped_storage().data_ptr() not in self.left_out:
                size = one.untyped_storage().nbytes()
                if not (one.dtype == torch.uint8 and size == self.label_bytes):
                    self.bytes = max(self.bytes, size)
        return result


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("smooth", [False, True])
def test_no_allocation_grows_with_the_length_of_the_scan(axis: int, smooth: bool) -> None:
    largest = []
    for length in (20, 40, 80):
        shape, box = [8, 8, 8], [12, 12, 12]
        shape[axis], box[axis] = length, 2 * length
        ramp = torch.linspace(-1, 1, length).expand(1, 8, 8, -1).movedim(-1, axis + 1)
        volume = ramp.contiguous() if smooth else torch.randn(1, *shape)
        with LargestAllocation(volume, label_bytes=2 * length * 144) as mode:
            segment(volume, predictor_of(3), Windows(PATCH), (box[0], box[1], box[2]))
        largest.append(mode.bytes)
    assert largest[0] == largest[1] == largest[2]
