"""Small nnU-Net v2 model folders with random weights, and scans for them, made without nnU-Net.

All numbers come from NumPy's seeded generators, so a folder can be made again on any machine, bit for bit.
"""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from tests.interop.variants import ARRAY_RESAMPLING, Variant

CONFIGURATION = "3d_fullres"


def write_folder(folder: Path, variant: Variant) -> Path:
    """Write plans.json, dataset.json and fold_*/checkpoint_final.pth."""
    folder.mkdir(parents=True, exist_ok=True)
    plans, dataset = plans_of(variant), dataset_of(variant)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    for fold in range(variant.folds):
        document = checkpoint(variant, fold)
        if not variant.stripped:
            document = unstripped(document, plans, dataset)
        (folder / f"fold_{fold}").mkdir(exist_ok=True)
        torch.save(document, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def plans_of(variant: Variant) -> dict[str, Any]:
    """The document in plans.json."""
    arguments: dict[str, Any] = {"is_seg": False, "force_separate_z": variant.force_separate_z}
    if variant.resampling == ARRAY_RESAMPLING:
        arguments["order_z"] = 0
    by_order = variant.resampling == ARRAY_RESAMPLING
    shared = {
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": list(variant.patch),
        "spacing": list(variant.spacing),
        "normalization_schemes": list(variant.schemes),
        "use_mask_for_norm": [variant.masked] * len(variant.schemes),
        "resampling_fn_data": variant.resampling,
        "resampling_fn_data_kwargs": {**arguments, **({"order": 3} if by_order else {})},
        "resampling_fn_seg": variant.resampling,
        "resampling_fn_seg_kwargs": {**arguments, "is_seg": True, **({"order": 1} if by_order else {})},
        "resampling_fn_probabilities": variant.resampling,
        "resampling_fn_probabilities_kwargs": {**arguments, **({"order": 1} if by_order else {})},
        **(old_network(variant) if variant.old else {"architecture": architecture(variant)}),
    }
    numbers = {"mean": 480.0, "std": 210.0, "percentile_00_5": 150.0, "percentile_99_5": 830.0}
    intensities = {str(index): numbers for index in range(len(variant.channels))}
    named = "by_modality" if variant.old else "per_channel"
    back = np.argsort(variant.transpose).tolist()
    return {
        "dataset_name": "Dataset007_Small",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": variant.reader,
        "transpose_forward": list(variant.transpose),
        "transpose_backward": back,
        "configurations": {
            "other": {"patch_size": [8, 8]},
            "base": {**shared, "batch_size": 2},
            CONFIGURATION: {"inherits_from": "base", "batch_size": 3},
        },
        "label_manager": "LabelManager",
        f"foreground_intensity_properties_{named}": intensities,
    }


def architecture(variant: Variant) -> dict[str, Any]:
    """The network as nnU-Net 2.4 and later write it."""
    name = "ResidualEncoderUNet" if variant.residual else "PlainConvUNet"
    batch = "Batch" in variant.norm
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": {
            "n_stages": len(variant.features),
            "features_per_stage": list(variant.features),
            "conv_op": f"torch.nn.modules.conv.Conv{variant.dimensions}d",
            "kernel_sizes": [list(kernel) for kernel in variant.kernels],
            "strides": [list(stride) for stride in variant.strides],
            "n_blocks_per_stage" if variant.residual else "n_conv_per_stage": list(variant.blocks),
            "n_conv_per_stage_decoder": list(variant.decoder_blocks),
            "conv_bias": variant.conv_bias,
            "norm_op": variant.norm,
            "norm_op_kwargs": {"eps": 1e-5, "affine": True, **({"momentum": 0.1} if batch else {})},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": variant.nonlin,
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def old_network(variant: Variant) -> dict[str, Any]:
    """The network as nnU-Net before 2.4 wrote it: features double from stage to stage up to a maximum."""
    return {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": variant.features[0],
        "unet_max_num_features": variant.features[-1],
        "n_conv_per_stage_encoder": list(variant.blocks),
        "n_conv_per_stage_decoder": list(variant.decoder_blocks),
        "num_pool_per_axis": [1, 2, 2][-variant.dimensions :],
        "pool_op_kernel_sizes": [list(stride) for stride in variant.strides],
        "conv_kernel_sizes": [list(kernel) for kernel in variant.kernels],
    }


def dataset_of(variant: Variant) -> dict[str, Any]:
    """The document in dataset.json."""
    document: dict[str, Any] = {
        "modality" if variant.old else "channel_names": variant.channels,
        "labels": variant.labels,
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    if variant.regions_class_order:
        document["regions_class_order"] = list(variant.regions_class_order)
    return document


def checkpoint(variant: Variant, fold: int) -> dict[str, Any]:
    """A checkpoint with the parts that prediction needs."""
    return {
        "network_weights": network_weights(variant, np.random.default_rng(fold)),
        "init_args": {"configuration": CONFIGURATION, "fold": fold},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, variant.dimensions - 1),
    }


def unstripped(document: dict[str, Any], plans: dict[str, Any], dataset: dict[str, Any]) -> dict[str, Any]:
    """The same checkpoint as a training run leaves it: NumPy scalars, the optimiser's state, a torch.device."""
    weights = document["network_weights"]
    buffers = {index: {"momentum_buffer": torch.zeros_like(one)} for index, one in enumerate(weights.values())}
    group = {"lr": 0.01, "momentum": 0.99, "nesterov": True, "foreach": None, "params": list(buffers)}
    return {
        **document,
        "optimizer_state": {"state": buffers, "param_groups": [group]},
        "grad_scaler_state": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 7},
        "logging": {
            "mean_fg_dice": [np.float64(0.5), np.float64(0.75)],
            "dice_per_class_or_region": [[np.float64(0.5), np.float32(0.25)], [np.float32("nan"), np.int64(1)]],
            "train_losses": [np.float32(-0.5)],
            "epoch_start_timestamps": [1.5e9],
        },
        "_best_ema": np.float64(0.625),
        "current_epoch": 2,
        "init_args": {
            **document["init_args"],
            "plans": plans,
            "dataset_json": dataset,
            "unpack_dataset": True,
            "device": torch.device("cuda:0"),
        },
    }


def network_weights(variant: Variant, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Random weights under all the names that nnU-Net's modules give them."""
    encoder: dict[str, torch.Tensor] = {}
    features, kernels, strides = variant.features, variant.kernels, variant.strides
    channels = len(variant.channels)
    if variant.residual:
        add_block(encoder, "stem.convs.0", channels, features[0], kernels[0], variant, rng)
        channels = features[0]
    for s, blocks in enumerate(variant.blocks):
        for k in range(blocks):
            before = features[s] if k else channels
            if variant.residual:
                name, stride = f"stages.{s}.blocks.{k}", strides[s] if k == 0 else strides[0]
                add_residual_block(encoder, name, before, features[s], kernels[s], stride, variant, rng)
            else:
                add_block(encoder, f"stages.{s}.0.convs.{k}", before, features[s], kernels[s], variant, rng)
        channels = features[s]
    decoder: dict[str, torch.Tensor] = {f"encoder.{name}": tensor for name, tensor in encoder.items()}
    for i, s in enumerate(range(len(features) - 2, -1, -1)):
        shape = (features[s + 1], features[s], *strides[s + 1])
        add_conv(decoder, f"transpconvs.{i}", shape, features[s + 1], features[s] * variant.conv_bias, rng)
        for k in range(variant.decoder_blocks[i]):
            before = features[s] if k else 2 * features[s]
            add_block(decoder, f"stages.{i}.convs.{k}", before, features[s], kernels[s], variant, rng)
        shape = (variant.heads, features[s], *strides[0])
        add_conv(decoder, f"seg_layers.{i}", shape, features[s], variant.heads, rng)
        # Without this, one class would win nearly everywhere, because activations are mostly positive.
        decoder[f"seg_layers.{i}.weight"] -= decoder[f"seg_layers.{i}.weight"].mean(1, keepdim=True)
    names = {f"encoder.{name}": tensor for name, tensor in encoder.items()}
    return names | {f"decoder.{name}": tensor for name, tensor in decoder.items()}


def add_residual_block(tensors, name, before, after, kernel, stride, variant, rng) -> None:
    add_block(tensors, f"{name}.conv1", before, after, kernel, variant, rng)
    add_block(tensors, f"{name}.conv2", after, after, kernel, variant, rng)
    if before != after:
        pooled = int(max(stride) > 1)
        point = (1,) * variant.dimensions
        add_block(tensors, f"{name}.skip.{pooled}", before, after, point, variant, rng, bias=False)


def add_block(tensors, name, before, after, kernel, variant, rng, bias=None) -> None:
    """Convolution and norm, each under its own name and under its index in the sequence."""
    biases = after * (variant.conv_bias if bias is None else bias)
    add_conv(tensors, f"{name}.conv", (after, before, *kernel), before * int(np.prod(kernel)), biases, rng)
    norm = {"weight": rng.uniform(0.5, 1.5, after), "bias": rng.normal(0, 0.5, after)}
    if "Batch" in variant.norm:
        norm |= {"running_mean": rng.normal(0, 0.5, after), "running_var": rng.uniform(0.5, 1.5, after)}
        tensors[f"{name}.norm.num_batches_tracked"] = torch.tensor(11)
    for key, values in norm.items():
        tensors[f"{name}.norm.{key}"] = torch.from_numpy(values.astype(np.float32))
    for own, place in (("conv", 0), ("norm", 1)):
        prefix = f"{name}.{own}."
        for full in [one for one in tensors if one.startswith(prefix)]:
            tensors[f"{name}.all_modules.{place}.{full.removeprefix(prefix)}"] = tensors[full]


def add_conv(tensors, name, shape, fan_in, biases, rng) -> None:
    weight = rng.standard_normal(shape) * np.sqrt(2 / fan_in)
    tensors[f"{name}.weight"] = torch.from_numpy(weight.astype(np.float32))
    if biases:
        tensors[f"{name}.bias"] = torch.from_numpy(rng.normal(0, 0.2, biases).astype(np.float32))


def write_scan(folder: Path, variant: Variant, scale: int = 1) -> list[Path]:
    """A scan for the variant, one file per channel (case_0000.nii.gz, ...), `scale` times the size."""
    folder.mkdir(parents=True, exist_ok=True)
    i, j, k = (size * scale if size > 1 else 1 for size in variant.scan_shape)
    shape = (i, j, k)
    directions = [-1.0 if axis in variant.scan_flips else 1.0 for axis in range(3)]
    affine = np.diag([*np.multiply(directions, variant.scan_spacing), 1.0])
    paths = []
    for channel in range(len(variant.channels)):
        array = smooth(shape, np.random.default_rng(100 + channel))
        if variant.masked:
            array *= ellipsoid(shape)
        paths.append(folder / f"case_{channel:04d}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(array, affine), paths[-1])
    return paths


def smooth(shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Sine waves with periods of some voxels plus noise of a few units, 1 to 255, int16."""
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1)
    total = np.zeros(shape)
    for _ in range(12):
        total += np.sin(grid @ rng.uniform(-0.6, 0.6, 3) + rng.uniform(0, 6))
    total += rng.normal(0, 0.2, shape)
    return np.clip(128 + 35 * total, 1, 255).astype(np.int16)


def ellipsoid(shape: tuple[int, int, int]) -> np.ndarray:
    """1 inside an ellipsoid that leaves a margin, but 0 in a small cube in its middle."""
    centre = np.array(shape) // 2
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1) - centre
    mask = (np.square(grid / (np.array(shape) * 0.42)).sum(-1) < 1).astype(np.int16)
    mask[tuple(slice(middle - 1, middle + 2) for middle in centre)] = 0
    return mask
