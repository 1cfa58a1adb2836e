"""Write an nnU-Net v2 model folder with random weights, like one that nnU-Net has trained.

    python benchmarks/nnunet/write_folder.py FOLDER SPECIFICATION

Needs a Python that has nnunetv2; `predict_vs_nnunet.py` calls this with that Python and a `Model` as JSON.
"""

import json
import sys
from pathlib import Path

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet

# Plausible intensities of an abdominal CT dataset; they need not be exact because the weights are random.
CT_INTENSITIES = {"mean": 0.0, "std": 400.0, "percentile_00_5": -1000.0, "percentile_99_5": 1000.0}
RESAMPLER = "resample_data_or_seg_to_shape"


def main() -> None:
    folder, model = Path(sys.argv[1]), json.loads(sys.argv[2])
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans_of(model), indent=1))
    names = {"background": 0, **{f"label {value}": value for value in range(1, model["labels"] + 1)}}
    channel = "CT" if model["normalisation"] == "CTNormalization" else "MRI"
    dataset = {"channel_names": {"0": channel}, "labels": names, "numTraining": 1, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(dataset, indent=1))
    checkpoint = {
        "network_weights": network_of(model).state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres", "fold": 0},
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")


def plans_of(model: dict) -> dict:
    """plans.json with the single configuration 3d_fullres and nnU-Net's default resampling."""
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": model["patch"],
        "median_image_size_in_voxels": model["patch"],
        "spacing": model["spacing_mm"],
        "normalization_schemes": [model["normalisation"]],
        "use_mask_for_norm": [False],
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": arguments_of(model),
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    for kind, is_seg, order in (("data", False, 3), ("seg", True, 1), ("probabilities", False, 1)):
        configuration[f"resampling_fn_{kind}"] = RESAMPLER
        arguments = {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}
        configuration[f"resampling_fn_{kind}_kwargs"] = arguments
    return {
        "dataset_name": "Dataset900_Random",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": model["spacing_mm"],
        "original_median_shape_after_transp": model["patch"],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": CT_INTENSITIES},
    }


def arguments_of(model: dict) -> dict:
    """The arguments of the network in plans.json."""
    stages = len(model["features"])
    return {
        "n_stages": stages,
        "features_per_stage": model["features"],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def network_of(model: dict) -> PlainConvUNet:
    """The same network with random weights."""
    operations = {"conv_op": torch.nn.Conv3d, "norm_op": torch.nn.InstanceNorm3d, "nonlin": torch.nn.LeakyReLU}
    torch.manual_seed(0)
    network = PlainConvUNet(1, num_classes=model["labels"] + 1, **{**arguments_of(model), **operations})
    network.apply(network.initialize)
    if model["smooth"]:
        smooth(network.decoder)
    return network


@torch.no_grad()
def smooth(decoder: torch.nn.Module) -> None:
    """Predict from the coarsest features alone: no weight on skip connections, and box filters as kernels."""
    for stage in decoder.stages:
        weight = stage.convs[0].conv.weight
        weight[:, weight.shape[1] // 2 :] = 0  # the upsampled features come first, then the skip connection
    for parameter in decoder.parameters():
        if parameter.ndim == 5:
            parameter.copy_(parameter.mean((2, 3, 4), keepdim=True).expand_as(parameter))


if __name__ == "__main__":
    main()
