"""Reading configurations: YAML files and `key=value` overrides."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from volseg.config.training import Config
from volseg.config.values import checked
from volseg.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Rejects a duplicate key in a mapping, of which YAML would silently keep the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise yaml.YAMLError(f"the key '{name}' is on line {lines[name]} and again on line {line}")
            lines[name] = line
        return node


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML configuration and apply `key=value` overrides such as `training.learning_rate=0.001`.

    Raises:
        ConfigError: a missing file, an unknown key or an invalid value, by name.
    """
    document = read_yaml(path) if path else {}
    # YAML reads a group without values as None.
    document = {key: {} if value is None else value for key, value in document.items()}
    for override in overrides:
        _apply_override(document, override)
    return checked(Config, document, str(path) if path else "the configuration")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping as a dict; an empty file is an empty dict.

    Raises:
        ConfigError: not readable, not YAML, a duplicate key, or not a mapping.
    """
    try:
        document = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Could not read {path}: {error}. Give the path of a YAML file.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds a {type(document).__name__}, expected a mapping of keys to values.")
    return document


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(
            f"--set {override!r} has no value; write key=value, for example training.learning_rate=0.001."
        )
    *parents, last = key.strip().split(".")
    for parent in parents:
        document = document.setdefault(parent, {})
        if not isinstance(document, dict):
            raise ConfigError(f"--set {override!r}: '{parent}' is a value, not a group of values.")
    try:
        document[last] = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: {text!r} is not a YAML value.") from error
