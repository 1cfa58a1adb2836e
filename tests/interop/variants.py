"""The kinds of nnU-Net v2 models that tests import, each as a small example."""

from dataclasses import dataclass, field
from typing import Any

ARRAY_RESAMPLING = "resample_data_or_seg_to_shape"
TORCH_RESAMPLING = "resample_torch_fornnunet"


@dataclass(frozen=True)
class Variant:
    """A model folder and the scan that goes with it; triples are in nnU-Net's order after its transpose.

    A 2-D model has pairs instead, and the norm of its dimensions.

    Attributes:
        scan_spacing: of the scan along I, J, K.
        scan_flips: axes of the scan that run to L, P or I.
        masked: the scan is 0 outside an ellipsoid, and in a hole in it.
        old: plans.json in the format before nnU-Net 2.4.
        stripped: the checkpoint contains weights and little else.
    """

    channels: dict[str, str] = field(default_factory=lambda: {"0": "MRI"})
    schemes: tuple[str, ...] = ("ZScoreNormalization",)
    labels: dict[str, Any] = field(default_factory=lambda: {"background": 0, "first": 1, "second": 2})
    regions_class_order: tuple[int, ...] | None = None
    reader: str = "SimpleITKIO"
    transpose: tuple[int, int, int] = (0, 1, 2)
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
    scan_spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    scan_flips: tuple[int, ...] = ()
    scan_shape: tuple[int, int, int] = (18, 20, 16)
    patch: tuple[int, ...] = (8, 8, 8)
    resampling: str = ARRAY_RESAMPLING
    force_separate_z: bool | None = None
    features: tuple[int, ...] = (6, 10)
    blocks: tuple[int, ...] = (2, 2)
    kernels: tuple[tuple[int, ...], ...] = ((3, 3, 3), (3, 3, 3))
    strides: tuple[tuple[int, ...], ...] = ((1, 1, 1), (2, 2, 2))
    decoder_blocks: tuple[int, ...] = (2,)
    residual: bool = False
    norm: str = "torch.nn.modules.instancenorm.InstanceNorm3d"
    nonlin: str = "torch.nn.LeakyReLU"
    conv_bias: bool = True
    masked: bool = False
    folds: int = 1
    old: bool = False
    stripped: bool = True

    @property
    def dimensions(self) -> int:
        """Of the network."""
        return len(self.patch)

    @property
    def heads(self) -> int:
        """Outputs of the network."""
        values = [one for name, one in self.labels.items() if name not in ("background", "ignore")]
        return len(values) + (self.regions_class_order is None)


DEEP = {
    "features": (4, 6, 8),
    "blocks": (1, 2, 1),
    "decoder_blocks": (2, 1),
    "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
}
FLAT = {
    "patch": (8, 8),
    "spacing": (1.0, 1.0),
    "kernels": ((3, 3), (3, 3)),
    "strides": ((1, 1), (2, 2)),
    "norm": "torch.nn.modules.instancenorm.InstanceNorm2d",
}
VARIANTS = {
    "windows": Variant(spacing=(1.2, 1.0, 1.1), scan_spacing=(0.9, 1.1, 1.3)),
    "ct": Variant(
        channels={"0": "CT"},
        schemes=("CTNormalization",),
        labels={"background": 0, "first": 1, "second": 2, "third": 3, "ignore": 4},
        spacing=(1.5, 1.0, 1.0),
        nonlin="torch.nn.ReLU",
    ),
    "masked": Variant(masked=True, spacing=(1.1, 1.0, 0.9)),
    "two_channels": Variant(
        channels={"0": "T1", "1": "T2"}, schemes=("RescaleTo01Normalization", "RGBTo01Normalization"), masked=True
    ),
    "transposed": Variant(
        transpose=(2, 0, 1), patch=(4, 8, 16), spacing=(1.4, 1.0, 1.1), scan_spacing=(1.3, 1.0, 0.8), **DEEP
    ),
    "anisotropic": Variant(patch=(4, 16, 16), spacing=(4.0, 1.0, 1.0), scan_spacing=(1.2, 1.1, 3.0), **DEEP),
    "thick": Variant(patch=(4, 8, 8), spacing=(2.0, 1.0, 1.0), scan_spacing=(1.2, 1.1, 5.0), conv_bias=False),
    "regions": Variant(
        labels={"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
        regions_class_order=(1, 2, 3),
        spacing=(1.2, 1.0, 1.0),
        masked=True,
    ),
    "residual": Variant(residual=True, patch=(8, 8, 8), spacing=(1.2, 1.1, 1.0), **DEEP),
    "folds": Variant(folds=2, spacing=(1.0, 1.1, 1.0)),
    "unstripped": Variant(stripped=False, spacing=(1.0, 1.0, 1.2)),
    "old_plans": Variant(old=True, features=(4, 8, 10), **{key: DEEP[key] for key in DEEP if key != "features"}),
    "torch": Variant(resampling=TORCH_RESAMPLING, spacing=(1.2, 1.0, 1.1), scan_spacing=(0.9, 1.1, 1.3)),
    "torch_anisotropic": Variant(
        resampling=TORCH_RESAMPLING, patch=(4, 16, 16), spacing=(4.0, 1.0, 1.0), scan_spacing=(1.2, 1.1, 3.0), **DEEP
    ),
    "batch_norm": Variant(norm="torch.nn.modules.batchnorm.BatchNorm3d", schemes=("NoNormalization",)),
    "reoriented": Variant(
        reader="NibabelIOWithReorient", scan_flips=(0, 2), scan_spacing=(1.1, 1.0, 0.9), force_separate_z=False
    ),
    "slices": Variant(**FLAT | {"spacing": (1.2, 1.1)}, scan_spacing=(0.9, 1.1, 1.3)),
    "thick_slices": Variant(**FLAT | {"patch": (16, 8)}, scan_spacing=(1.2, 1.1, 6.0), masked=True),
    "single_slice": Variant(**FLAT, scan_spacing=(1.3, 0.8, 5.0), scan_shape=(30, 40, 1)),
    "slices_transposed": Variant(
        **FLAT | {"spacing": (1.4, 0.9)}, transpose=(2, 0, 1), scan_spacing=(1.3, 1.0, 0.8), residual=True
    ),
    "slices_torch": Variant(
        **FLAT | {"spacing": (1.0, 1.1)}, resampling=TORCH_RESAMPLING, scan_spacing=(0.9, 1.2, 4.0), folds=2
    ),
    "slices_old": Variant(**FLAT | {"spacing": (1.1, 1.0)}, old=True),
    "slices_batch_norm": Variant(
        **FLAT | {"norm": "torch.nn.modules.batchnorm.BatchNorm2d", "patch": (8, 16)},
        channels={"0": "T1", "1": "T2"},
        schemes=("ZScoreNormalization", "NoNormalization"),
        labels={"background": 0, "whole": [1, 2], "core": 2},
        regions_class_order=(1, 2),
    ),
}
