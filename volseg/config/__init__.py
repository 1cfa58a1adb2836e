"""Configuration: the plan of a model, which is stored in the model file, and the YAML files that users write.

All defaults and units are defined here. Spatial triples are in network order (D, H, W) unless they say (I, J, K).
"""

from volseg.config.files import load_config, read_yaml
from volseg.config.network import CUSTOM, Block, NetworkConfig
from volseg.config.plan import (
    Channel,
    CodedName,
    ComponentRule,
    Label,
    LabelCode,
    Plan,
    Resampling,
    ScanRanges,
    Sides,
    exchanged_order,
    rules_in_words,
)
from volseg.config.training import AugmentationConfig, Config, PlanChoices, TrainingConfig
from volseg.config.values import (
    ABSOLUTE,
    IGNORED,
    LEVELS,
    MODALITIES,
    Activation,
    Axis,
    Count,
    Frozen,
    Mid,
    Name,
    Norm,
    Normalisation,
    Triple,
    checked,
    distinct_names,
    known_name,
)

__all__ = [
    "ABSOLUTE",
    "CUSTOM",
    "IGNORED",
    "LEVELS",
    "MODALITIES",
    "Activation",
    "AugmentationConfig",
    "Axis",
    "Block",
    "Channel",
    "CodedName",
    "ComponentRule",
    "Config",
    "Count",
    "Frozen",
    "Label",
    "LabelCode",
    "Mid",
    "Name",
    "NetworkConfig",
    "Norm",
    "Normalisation",
    "Plan",
    "PlanChoices",
    "Resampling",
    "ScanRanges",
    "Sides",
    "TrainingConfig",
    "Triple",
    "checked",
    "distinct_names",
    "exchanged_order",
    "known_name",
    "load_config",
    "read_yaml",
    "rules_in_words",
]
