"""The network that an nnU-Net v2 configuration describes, as a `NetworkConfig`.

Plans of nnU-Net 2.4 and later contain the arguments of a network class; older ones contain a few numbers of a U-Net.
"""

from typing import Annotated, Any, NoReturn

from pydantic import ConfigDict, Field

from volseg.config import Activation, Count, NetworkConfig, Norm, checked
from volseg.config.network import MOST_STAGES
from volseg.errors import InputError
from volseg.interop.stored import Stored
from volseg.text import shortened

PerStage = Count | Annotated[tuple[Count, ...], Field(max_length=MOST_STAGES)]
PerAxis = Count | Annotated[tuple[Count, ...], Field(max_length=3)]

PACKAGE = "dynamic_network_architectures."
ENCODERS = {"PlainConvUNet": "plain", "ResidualEncoderUNet": "residual"}
CONVOLUTION = "torch.nn.modules.conv.Conv"
NORMS: dict[str, Norm] = {"InstanceNorm": "instance", "BatchNorm": "batch"}
IN_WORDS = {2: "two-dimensional networks (Conv2d)", 3: "three-dimensional networks (Conv3d)"}
# Keyword arguments with which an activation equals volseg's; `inplace` changes no value.
ACTIVATIONS: dict[str, tuple[Activation, dict[str, Any]]] = {
    "LeakyReLU": ("leaky_relu", {"negative_slope": 0.01}),
    "ReLU": ("relu", {}),
    "GELU": ("gelu", {"approximate": "none"}),
}
# Implied by all plans before 2.4, with convolution and norm of the patch's dimensions.
OLD_ARGUMENTS = {
    "conv_bias": True,
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "nonlin": "torch.nn.LeakyReLU",
}


class OldNetwork(Stored):
    """The network in a configuration written before nnU-Net 2.4."""

    class_name: str = Field(alias="UNet_class_name")
    first_features: Count = Field(alias="UNet_base_num_features")
    most_features: Count = Field(alias="unet_max_num_features")
    n_conv_per_stage_encoder: tuple[Count, ...] = Field(max_length=MOST_STAGES)
    n_conv_per_stage_decoder: tuple[Count, ...] = Field(max_length=MOST_STAGES)
    conv_kernel_sizes: tuple[PerAxis, ...] = Field(max_length=MOST_STAGES)
    pool_op_kernel_sizes: tuple[PerAxis, ...] = Field(max_length=MOST_STAGES)

    def architecture(self, dimensions: int) -> dict[str, Any]:
        """The same network in the format of nnU-Net 2.4 and later."""
        residual = self.class_name == "ResidualEncoderUNet"
        stages = range(len(self.n_conv_per_stage_encoder))
        return {
            "network_class_name": f"{PACKAGE}architectures.unet.{self.class_name}",
            "arch_kwargs": {
                **OLD_ARGUMENTS,
                "conv_op": f"{CONVOLUTION}{dimensions}d",
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
                "n_stages": len(stages),
                "features_per_stage": [min(self.first_features * 2**s, self.most_features) for s in stages],
                "kernel_sizes": self.conv_kernel_sizes,
                "strides": self.pool_op_kernel_sizes,
                "n_blocks_per_stage" if residual else "n_conv_per_stage": self.n_conv_per_stage_encoder,
                "n_conv_per_stage_decoder": self.n_conv_per_stage_decoder,
            },
        }


class Arguments(Stored):
    """The arguments of a network class; dropout is off in prediction."""

    model_config = ConfigDict(extra="forbid")

    n_stages: int = Field(ge=1, le=MOST_STAGES)
    features_per_stage: PerStage
    conv_op: str
    kernel_sizes: Count | Annotated[tuple[PerAxis, ...], Field(max_length=MOST_STAGES)]
    strides: Count | Annotated[tuple[PerAxis, ...], Field(max_length=MOST_STAGES)]
    n_conv_per_stage: PerStage | None = None
    n_blocks_per_stage: PerStage | None = None
    n_conv_per_stage_decoder: PerStage
    conv_bias: bool = False
    norm_op: str | None = None
    norm_op_kwargs: dict[str, Any] | None = None
    dropout_op: Any = None
    dropout_op_kwargs: Any = None
    nonlin: str | None = None
    nonlin_kwargs: dict[str, Any] | None = None
    deep_supervision: bool = True
    nonlin_first: bool = False
    block: str = "BasicBlockD"
    bottleneck_channels: Any = None
    stem_channels: int | None = None


class Architecture(Stored):
    """A network class and its arguments."""

    network_class_name: str
    arch_kwargs: dict[str, Any]


def network_of(configuration: dict[str, Any], trainer: str, channels: int, classes: int) -> NetworkConfig:
    """The network of a configuration.

    Args:
        configuration: of plans.json, inherited values included.
        trainer: class name; nnUNetTrainerBN replaces the norm.
        channels: of the input.
        classes: of the output.

    Raises:
        InputError: it is not a network that volseg can build.
    """
    source = "The network in plans.json"
    dimensions = 2 if len(configuration["patch_size"]) == 2 else 3
    document = configuration.get("architecture")
    if not document:
        document = checked(OldNetwork, configuration, source, InputError).architecture(dimensions)
    architecture = checked(Architecture, document, source, InputError)
    name = architecture.network_class_name
    encoder = ENCODERS.get(name.rpartition(".")[2]) if name.startswith(PACKAGE) else None
    if encoder is None:
        _reject(f"is {name}", "PlainConvUNet and ResidualEncoderUNet")
    arguments = checked(Arguments, architecture.arch_kwargs, source, InputError)
    _check_arguments(arguments, dimensions)
    blocks = arguments.n_conv_per_stage if encoder == "plain" else arguments.n_blocks_per_stage
    stages = arguments.n_stages
    features = _per_stage(arguments.features_per_stage, stages)
    if len(features) != stages:
        _reject(f"has {stages} stages, but {len(features)} features_per_stage", "networks with one entry per stage")
    if arguments.stem_channels not in (None, features[0]):
        _reject(
            f"has a stem of {arguments.stem_channels} channels", f"stems of the first stage's {features[0]} channels"
        )
    return checked(
        NetworkConfig,
        {
            "in_channels": channels,
            "classes": classes,
            "encoder": encoder,
            "features": features,
            "encoder_blocks": _per_stage(blocks, stages),
            # nnU-Net counts the decoder's stages from the coarsest.
            "decoder_blocks": _per_stage(arguments.n_conv_per_stage_decoder, stages - 1)[::-1],
            "kernels": _per_axis(arguments.kernel_sizes, stages, dimensions),
            "strides": _per_axis(arguments.strides, stages, dimensions),
            "norm": "batch" if trainer == "nnUNetTrainerBN" else _norm(arguments, dimensions),
            "activation": _activation(arguments),
        },
        source,
        InputError,
    )


def _check_arguments(arguments: Arguments, dimensions: int) -> None:
    """Reject arguments that change what the network class computes."""
    if arguments.conv_op.rpartition(".")[2] != f"Conv{dimensions}d":
        found = f"computes with {arguments.conv_op} for a patch_size of {dimensions} numbers"
        _reject(found, f"{IN_WORDS[dimensions]} there")
    if arguments.nonlin_first:
        _reject("has nonlin_first", "networks with the norm before the activation")
    if arguments.block.rpartition(".")[2] != "BasicBlockD" or arguments.bottleneck_channels is not None:
        _reject(f"is made of {arguments.block} with bottleneck_channels {arguments.bottleneck_channels}", "BasicBlockD")


def _norm(arguments: Arguments, dimensions: int) -> Norm:
    """The norm; it has to be affine with eps 1e-5."""
    full = (arguments.norm_op or "none").rpartition(".")[2]
    name = full.removesuffix(f"{dimensions}d")
    given = dict(arguments.norm_op_kwargs or {})
    given.pop("momentum", None)  # of running statistics, which prediction does not update
    default = {"eps": 1e-5, "affine": name == "BatchNorm", "track_running_stats": name == "BatchNorm"}
    needed = {**default, "affine": True}
    if name not in NORMS or {**default, **given} != needed:
        known = f"InstanceNorm{dimensions}d and BatchNorm{dimensions}d with eps 1e-05 and affine"
        _reject(f"has the norm {full} with {given}", known)
    return NORMS[name]


def _activation(arguments: Arguments) -> Activation:
    """The activation; volseg has to have it."""
    name = (arguments.nonlin or "none").rpartition(".")[2]
    given = dict(arguments.nonlin_kwargs or {})
    given.pop("inplace", None)
    if name not in ACTIVATIONS or {**ACTIVATIONS[name][1], **given} != ACTIVATIONS[name][1]:
        _reject(f"has the activation {name} with {given}", "LeakyReLU with slope 0.01, ReLU and GELU")
    return ACTIVATIONS[name][0]


def _per_stage(value: Any, stages: int) -> Any:
    """One entry per stage; a single number applies to all stages. `NetworkConfig` checks the number of entries."""
    return (value,) * stages if isinstance(value, int) else value


def _per_axis(value: Any, stages: int, dimensions: int) -> Any:
    """One triple per stage; of two dimensions with 1 through the plane."""
    sizes = [(one,) * dimensions if isinstance(one, int) else one for one in _per_stage(value, stages)]
    return tuple((1, *one) if dimensions == 2 else one for one in sizes)


def _reject(found: str, known: str) -> NoReturn:
    found = shortened(found, 300)
    raise InputError(f"The network in plans.json {found}, which cannot be imported. volseg imports {known}.")
