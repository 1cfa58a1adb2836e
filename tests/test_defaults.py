"""Defaults in numbers: of the training recipe, of plans and networks, and of what users call.

They are written down a second time, because a default that changes by mistake breaks nothing: every run only becomes a
little worse. Who changes one on purpose has measured it (benchmarks/EXPERIMENTS.md, benchmarks/RESULTS.md), and says so
in CHANGELOG.md; a default of a plan or a network also changes what older model files mean that do not state it.
"""

import inspect
from importlib import import_module
from typing import Any

import pytest
import torch

import volseg
from volseg.config import Channel, ComponentRule, Config, Label, NetworkConfig, Plan, Resampling
from volseg.interop.nnunet_plans import ArrayResampling, Configuration, Plans, TorchResampling
from volseg.training.run.settings import RunSettings

TRAINING = {
    "loss": "dice_ce",
    "learning_rate": 0.015,
    "weight_decay": 0.01,
    "pull_to_model": 0.0,
    "gradient_clip": 12.0,
    "warmup": 0.02,
    "ema_fraction": 0.03,
    "dataset_shares": "cases",
    "ema_decay": None,
    "oversample_foreground": 0.33,
    "progressive_patch_size": 0.9,
    "validations": 5,
    "checkpoint_seconds": 60.0,
    "workers": None,
    "precision": "auto",
}
AUGMENTATION = {
    "warmup_epochs": 100.0,
    "rotation": 0.2,
    "rotation_degrees": 30.0,
    "scaling": 0.2,
    "scaling_range": (0.7, 1.4),
    "mirror": 0.5,
    "noise": 0.1,
    "noise_variance": 0.01,
    "blur": 0.2,
    "blur_sigma": (0.5, 1.0),
    "brightness": 0.15,
    "brightness_range": (0.75, 1.25),
    "contrast": 0.15,
    "contrast_range": (0.75, 1.25),
    "low_resolution": 0.25,
    "low_resolution_range": (0.5, 1.0),
    "gamma": 0.3,
    "gamma_inverted": 0.1,
    "gamma_range": (0.7, 1.5),
    "channel_dropout": 0.0,
}
PLAN_CHOICES = (
    "dimensions", "spacing_mm", "patch_size", "batch_size", "memory_gb", "normalisation", "crop", "image_resampling",
    "label_resampling", "antialias", "mirror_axes", "sides", "architecture", "block", "mid", "encoder", "features",
    "blocks_per_stage", "norm", "activation", "deep_supervision",
)  # fmt: skip
RESAMPLING = {
    "order": 1,
    "separate": "never",
    "separate_order": 0,
    "anisotropy": 3.0,
    "nearest": "scipy",
    "antialias": False,
}
PLAN = {
    "regions": False,
    "ignore": None,
    "orientation": "ras",
    "axes": (2, 0, 1),
    "dimensions": 3,
    "crop": "none",
    "image_resampling": Resampling(**RESAMPLING),
    "label_resampling": "nearest",
    "logits_resampling": Resampling(**RESAMPLING),
    "batch_size": 2,
    "mirror_axes": (),
    "sides": None,
    "scan_ranges": None,
    "steps": 20000,
}
NETWORK = {
    "architecture": "unet",
    "in_channels": 1,
    "classes": 2,
    "block": "conv3d",
    "mid": "light",
    "encoder": "plain",
    "features": (32, 64, 128, 256),
    "encoder_blocks": (2, 2, 2, 2),
    "decoder_blocks": (2, 2, 2),
    "kernels": ((3, 3, 3),) * 4,
    "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
    "norm": "instance",
    "activation": "leaky_relu",
    "deep_supervision": True,
}
LOADING = {
    "device": "auto", "precision": "auto", "overlap": 0.5, "tta": "none", "max_memory": None, "crop": "none"
}  # fmt: skip
CALLS = {
    "Segmenter.load": LOADING | {"network": None},
    "Segmenter.__call__": {
        "probabilities": None,
        "uncertainty": False,
        "series": None,
        "volume": None,
        "untilt": False,
    },
    "Result.save": {"to": "nifti"},
    "predict": LOADING
    | {
        "channels": None,
        "series": None,
        "volume": None,
        "untilt": False,
        "probabilities": False,
        "to": "nifti",
        "preview": False,
        "uncertainty": False,
        "overwrite": False,
        "skip_existing": False,
    },
    "train": {
        "config": None,
        "overrides": (),
        "fold": None,
        "folds": None,
        "splits": None,
        "seed": None,
        "minutes": None,
        "steps": None,
        "resume": False,
        "overwrite": False,
        "finish": False,
        "device": "auto",
        "loss": None,
        "network": None,
        "transforms": (),
        "optimiser": None,
        "callbacks": (),
        "from_model": None,
        "freeze": None,
        "keep_labels": False,
        "label_map": None,
    },
    "plan": {"config": None, "overrides": (), "device": "auto"},
    "evaluate": {
        "labels": None,
        "output": None,
        "metrics": None,
        "surface": "surface-distance",
        "tolerance_mm": 1.0,
        "lesions": None,
    },
    "compare": {
        "labels": None,
        "output": None,
        "surface": "surface-distance",
        "tolerance_mm": 1.0,
    },
    "audit": {"output": None, "dataset": None, "device": "auto", "precision": "auto", "network": None},
    "convert": {"like": None, "series": None, "volume": None, "overwrite": False},
    "ensemble": {"half": False, "overwrite": False, "network": None},
    "import_nnunet": {"checkpoint": "checkpoint_final.pth", "folds": None, "overwrite": False},
    "inference.sliding_window": {"overlap": 0.5, "batch_size": 1, "mirror_axes": (), "precision": "fp32"},
}


# Of parts that others put together, their defaults that are values.
PARTS = {
    "data.cases.dataset.Dataset": {"licence": "", "description": "", "problems": (), "folds": None, "splits": None},
    "data.cases.dataset.split_folds": {"folds": 5},
    "data.cases.patch_sampling.PatchSampler": {"seed": 0, "rank": 0, "world": 1},
    "data.cases.phantom.write_phantoms": {"tests": 0},
    "data.grid.geometry.Geometry.same_grid": {"tolerance_voxels": 0.01},
    "data.grid.geometry.Geometry.is_part_of": {"tolerance_voxels": 0.01},
    "data.grid.geometry.GridMap.back": {"outside": 0},
    "data.grid.intensities.Reference": {"offset": 0, "unit": 1.0},
    "data.grid.preprocess.image_to_network": {"body": False, "device": torch.device("cpu")},
    "data.grid.resample.nearest_index": {"rule": "scipy"},
    "device.choose_device": {"name": "auto"},
    "evaluation.report.evaluate_pairs": {
        "labels": None, "workers": 1, "ignore": None, "metrics": None, "surface": None,
    },
    "metrics.surface_distances": {"definition": "surface-distance"},
    "metrics.match_lesions": {"rule": "overlap"},
    "inference.engine.Target": {"nearest_axis": None, "sink": None, "rule": "scipy"},
    "inference.quality.measure": {"slab_voxels": 1 << 22, "unstated": ""},
    "inference.upsample.label_slabs": {"decide": None, "nearest_axis": None, "sink": None, "rule": "scipy"},
    "inference.windows.Windows": {"overlap": 0.5, "batch_size": 1, "mirror_axes": ()},
    "networks.blocks.Conv2Plus1d": {
        "mid": "light", "kernel": (3, 3, 3), "stride": (1, 1, 1), "norm": "instance", "activation": "leaky_relu"
    },
    "networks.cpu.instance_norm.InstanceNorm": {"eps": 1e-5, "inplace": False},
    "networks.cpu.malloc.keep_freed_memory": {"large": False},
    "planning.fingerprint.CaseFingerprint": {"warnings": (), "unstated": ""},
    "planning.topology.network_config": {"channels": 1, "classes": 2, "width": 32, "block": "conv3d"},
    "training.losses.soft_dice": {"regions": False},
    "training.losses.dice_loss": {"regions": False},
    "training.losses.cross_entropy": {"regions": False},
    "training.losses.dice_and_cross_entropy": {"regions": False},
    "training.losses.SegmentationLoss": {"loss": "dice_ce", "regions": False},
    "training.ranks.Ranks": {"rank": 0, "world": 1, "cpu_group": None},
    "training.state.TrainingState": {"data": ""},
    "transforms.spatial.RandAffinePatchd": {"mode": "bilinear"},
}  # fmt: skip
# What nnU-Net does where its files leave a key out.
NNUNET = {
    Plans: {"label_manager": "LabelManager", "median_spacing": None},
    Configuration: {"preprocessor_name": "DefaultPreprocessor", "previous_stage": None},
    ArrayResampling: {
        "is_seg": False, "order": 3, "order_z": 0, "force_separate_z": False, "separate_z_anisotropy_threshold": 3.0,
    },
    TorchResampling: {
        "is_seg": False, "num_threads": None, "device": None, "memefficient_seg_resampling": None,
        "force_separate_z": None, "separate_z_anisotropy_threshold": 3.0, "mode": "linear",
        "aniso_axis_mode": "nearest-exact",
    },
}  # fmt: skip


def test_the_recipe_of_training():
    assert Config().model_dump() == {
        "plan": dict.fromkeys(PLAN_CHOICES),
        "training": TRAINING,
        "augmentation": AUGMENTATION,
    }


def test_the_settings_of_a_run():
    budgets = {"minutes": None, "steps": None}
    assert RunSettings().model_dump() == {"fold": 0, "folds": 5, "seed": 0, **budgets}


@pytest.mark.parametrize(
    ("kind", "defaults"),
    [
        (Plan, PLAN),
        (NetworkConfig, NETWORK),
        (Resampling, RESAMPLING),
        (Channel, {"name": "image", "normalisation": "zscore", "clip": None, "mean": None, "std": None,
                   "mean_range": None}),
        (Label, {"parts": (), "colour": None, "volume_ml_range": None, "code": None}),
        (ComponentRule, {"smallest_ml": 0.0, "largest_only": False, "dice_before": None, "dice_after": None}),
    ],
)  # fmt: skip
def test_what_a_model_file_means_that_does_not_state_a_value(kind, defaults):
    fields = {name: field.get_default() for name, field in kind.model_fields.items() if not field.is_required()}
    assert fields == defaults


@pytest.mark.parametrize("name", CALLS)
def test_what_a_call_means_that_does_not_state_an_argument(name):
    found: Any = volseg
    for part in name.split("."):
        found = getattr(found, part)
    parameters = inspect.signature(found).parameters.items()
    defaults = {key: one.default for key, one in parameters if one.default is not one.empty and key != "progress"}
    assert defaults == CALLS[name]


def test_every_public_function_is_here():
    functions = {name for name in volseg.__all__ if inspect.isfunction(getattr(volseg, name))}
    assert functions == {name for name in CALLS if "." not in name}


@pytest.mark.parametrize("name", PARTS)
def test_what_a_part_does_without_an_argument(name):
    module, _, rest = name.rpartition(".")
    if module.rpartition(".")[2][0].isupper():
        module, rest = module.rpartition(".")[0], f"{module.rpartition('.')[2]}.{rest}"
    found: Any = import_module(f"volseg.{module}")
    for part in rest.split("."):
        found = getattr(found, part)
    parameters = inspect.signature(found).parameters
    assert {key: parameters[key].default for key in PARTS[name]} == PARTS[name]


@pytest.mark.parametrize("kind", NNUNET)
def test_what_files_of_nnunet_mean_that_do_not_state_a_value(kind):
    fields = {key: field for key, field in kind.model_fields.items() if not field.is_required()}
    assert {key: field.default for key, field in fields.items() if field.default_factory is None} == NNUNET[kind]
