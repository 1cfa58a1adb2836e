"""The memory of feature maps while a U-Net computes a window without gradients, from its configuration alone.

The maps are followed through `volseg.networks.unet` in the order in which they are taken and freed. On a CPU the large
ones come from `volseg.networks.cpu.feature_maps.empty_maps`, which may keep freed memory for maps of the same size.
"""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from volseg.config import NetworkConfig, Triple
from volseg.networks.blocks import UNIT_STRIDE, matched_channels
from volseg.networks.cpu import winograd
from volseg.networks.cpu.conv3d import LARGE, PLANES

WHOLE_KERNEL: Triple = (3, 3, 3)


@dataclass(frozen=True)
class Computing:
    """How windows are computed.

    Args:
        itemsize: bytes of a value of the feature maps.
        fast: whether the layers of `volseg.networks.cpu` compute them; else torch's own, as on a GPU.
        keep_freed: whether freed maps are kept for others of the same size, see `volseg.networks.cpu.malloc`.
    """

    itemsize: int
    fast: bool = True
    keep_freed: bool = True


@dataclass
class _Memory:
    """Bytes in use now and at the most; of reusable blocks also the most at once of each size."""

    keep_freed: bool
    used: int = 0
    peak: int = 0
    live: Counter[int] = field(default_factory=Counter)
    most: Counter[int] = field(default_factory=Counter)

    def take(self, size: int, reusable: bool = False) -> None:
        """Take a block; a reusable one from those that were kept, if there is one."""
        if reusable and self.keep_freed:
            self.live[size] += 1
            if self.live[size] <= self.most[size]:
                return
            self.most[size] += 1
        self.used += size
        self.peak = max(self.peak, self.used)

    def free(self, size: int, reusable: bool = False) -> None:
        """Free a block."""
        if reusable and self.keep_freed:
            self.live[size] -= 1
        else:
            self.used -= size

    @contextmanager
    def briefly(self, size: int) -> Iterator[None]:
        """A block that lives as long as the context."""
        self.take(size)
        yield
        self.free(size)


@dataclass(frozen=True)
class _Maps:
    """One tensor of feature maps: its channels, the sizes of one channel, and its bytes."""

    channels: int
    sizes: Triple
    size: int
    reusable: bool = False


class Footprint(NamedTuple):
    """Bytes of a network on top of its weights.

    Attributes:
        maps: the most at any time while windows are computed; the windows and the network's output included.
        kept: of `maps`, what is kept for reuse when the windows are done.
        filters: the filters of Winograd convolutions, kept from window to window.
        weights: of the weights themselves, in the type of the feature maps.
    """

    maps: int
    kept: int
    filters: int
    weights: int


def footprint(network: NetworkConfig, patch: Triple, batch: int, computing: Computing, *, head: bool) -> Footprint:
    """The memory of a network for `batch` windows of `patch` voxels.

    Args:
        network: a U-Net.
        patch: (d, h, w) of a window.
        batch: windows computed together.
        computing: how.
        head: whether the last layer is computed in the windows; else it follows the blending.
    """
    return _Walk(network, batch, computing).through(patch, head)


class _Walk:
    """One pass through the network."""

    def __init__(self, network: NetworkConfig, batch: int, computing: Computing) -> None:
        self.network, self.batch, self.computing = network, batch, computing
        self.memory = _Memory(computing.keep_freed)
        self.filters = self.weights = 0

    def through(self, patch: Triple, head: bool) -> Footprint:
        """Follow windows of `patch` voxels."""
        network = self.network
        x = self._maps(network.in_channels, patch)
        with self.memory.briefly(x.size // self.computing.itemsize * 4):
            self.memory.take(x.size)
            skips = []
            for stage in range(len(network.features)):
                x = self._encode(x, stage)
                skips.append(x)
            skips.pop()
            for stage in reversed(range(len(skips))):
                x = self._decode(x, skips.pop(), stage)
            if head:
                self.memory.take(4 * self.batch * network.classes * math.prod(patch))
        kept = sum(size * count for size, count in self.memory.most.items())
        return Footprint(self.memory.peak, kept, self.filters, self.weights)

    def _encode(self, x: _Maps, stage: int) -> _Maps:
        """An encoder stage; its input remains in memory, because it is a skip connection."""
        network, stride, given = self.network, self.network.strides[stage], x
        residual = network.encoder == "residual"
        if stage == 0:
            x = self._conv(x, network.features[0], 0, UNIT_STRIDE, stem=True)
            stride = UNIT_STRIDE
        for _ in range(network.encoder_blocks[stage] - (stage == 0 and not residual)):
            block = self._residual if residual else self._conv
            out = block(x, network.features[stage], stage, stride)
            if x is not given:
                self._free(x)
            x, stride = out, UNIT_STRIDE
        return x

    def _residual(self, x: _Maps, channels: int, stage: int, stride: Triple) -> _Maps:
        """A residual block: two convolutions, the residual connection, and the sum of both."""
        first = self._conv(x, channels, stage, stride)
        second = self._conv(first, channels, stage, UNIT_STRIDE)
        self._free(first)
        pooled, skip = self._maps(x.channels, second.sizes), self._maps(channels, second.sizes)
        out = self._maps(channels, second.sizes)
        with self.memory.briefly(pooled.size), self.memory.briefly(skip.size):
            self._take(out)
        self._free(second)
        return out

    def _decode(self, x: _Maps, skip: _Maps, stage: int) -> _Maps:
        """A decoder stage; its input remains in memory to the end of it."""
        channels = self.network.features[stage]
        fast = self.computing.fast
        both = self._maps(2 * channels, skip.sizes, reusable=fast)
        with self.memory.briefly(0 if fast else skip.size):
            self._take(both)
        self._free(skip)
        given, x = x, both
        for _ in range(self.network.decoder_blocks[stage]):
            out = self._conv(x, channels, stage, UNIT_STRIDE)
            self._free(x)
            x = out
        self._free(given)
        return x

    def _conv(self, x: _Maps, channels: int, stage: int, stride: Triple, stem: bool = False) -> _Maps:
        """A convolution with its norm and activation; its input remains in memory."""
        network, kernel = self.network, self.network.kernels[stage]
        if network.blocks[stage] == "conv2plus1d" and kernel[0] > 1 and not stem:
            middle = {"light": channels, "matched": matched_channels(x.channels, channels, kernel)}.get(
                str(network.mid), network.mid
            )
            _, *plane = _strided(x.sizes, stride)
            between = self._planar(x, int(middle), (x.sizes[0], plane[0], plane[1]), (1, *kernel[1:]))
            out = self._planar(between, channels, _strided(x.sizes, stride), (kernel[0], 1, 1))
            self._free(between)
            return out
        same = self.computing.fast and kernel == WHOLE_KERNEL and stride == UNIT_STRIDE
        by_winograd = same and self._is_winograd(x)
        sizes = _strided(x.sizes, stride)
        large = same and self.batch * channels * math.prod(sizes) >= LARGE
        out = self._maps(channels, sizes, reusable=by_winograd or large)
        weights = self.computing.itemsize * x.channels * channels * math.prod(kernel)
        self.weights += weights
        # Of the weights, one copy in the type of the maps and one in oneDNN's own format.
        plain = self._planes_bytes(x, out, large) + 2 * weights
        extra = self._winograd_bytes(x, channels) if by_winograd else plain
        self._take(out)
        with self.memory.briefly(extra):
            pass
        return self._activated(out, planar=kernel[0] == stride[0] == x.channels == 1)

    def _planar(self, x: _Maps, channels: int, sizes: Triple, kernel: Triple) -> _Maps:
        """A half of a (2+1)D convolution."""
        out = self._maps(channels, sizes)
        self.weights += self.computing.itemsize * x.channels * channels * math.prod(kernel)
        self._take(out)
        return self._activated(out, planar=True)

    def _activated(self, out: _Maps, planar: bool) -> _Maps:
        """A convolution's output after its norm and activation, which take a copy where they are not in place."""
        in_place = self.computing.fast and self.network.norm in ("instance", "none") and not planar
        copies = int(not in_place) + int(self.network.activation == "gelu")
        if copies == 0:
            return out
        copy = self._maps(out.channels, out.sizes)
        self._take(copy)
        self._free(out)
        return copy

    def _is_winograd(self, x: _Maps) -> bool:
        enough = math.prod(x.sizes) >= winograd.LEAST_VOXELS[self._dtype]
        return enough and x.channels >= winograd.LEAST_CHANNELS and x.sizes[0] >= winograd.LEAST_PLANES

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float32 if self.computing.itemsize == 4 else torch.bfloat16

    def _winograd_bytes(self, x: _Maps, channels: int) -> int:
        """The planes that a Winograd convolution adds up, and their products: see `winograd.convolve`."""
        plane = math.prod(x.sizes[1:])
        scheme = winograd.scheme_to_predict(x.sizes[0], self._dtype)
        tiles = max(1, winograd.CHUNK[self._dtype] // (scheme.outputs * plane * x.channels))
        tiles = min(tiles, self.batch * -(-x.sizes[0] // scheme.outputs))
        sums = scheme.outputs + 2
        filters = self.computing.itemsize * 9 * sums * x.channels * channels
        self.filters += filters
        # A product, or for bfloat16 four, exist also before they are copied or added.
        values = plane * tiles * ((sums + 2) * x.channels + (sums + 3) * channels)
        # Filters are made in float32, from a copy.
        return self.computing.itemsize * values + 2 * 4 * filters // self.computing.itemsize

    def _planes_bytes(self, x: _Maps, out: _Maps, large: bool) -> int:
        """Copies that a plain convolution makes: of a few planes of its output, and of an input of one channel."""
        padded = 4 * x.size if x.channels == 1 and self.computing.fast else 0
        planes = min(1.0, (PLANES + 2) / x.sizes[0]) if large else 0.0
        return padded + int(planes * out.size)

    def _maps(self, channels: int, sizes: Triple, reusable: bool = False) -> _Maps:
        size = self.batch * channels * math.prod(sizes) * self.computing.itemsize
        return _Maps(channels, sizes, size, reusable)

    def _take(self, maps: _Maps) -> None:
        self.memory.take(maps.size, maps.reusable)

    def _free(self, maps: _Maps) -> None:
        self.memory.free(maps.size, maps.reusable)


def _strided(sizes: Triple, stride: Triple) -> Triple:
    """The sizes after a convolution, which pads by half its kernel."""
    d, h, w = (-(-size // step) for size, step in zip(sizes, stride, strict=True))
    return (d, h, w)
