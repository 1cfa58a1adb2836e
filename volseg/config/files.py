"""Reading configurations: YAML files and `key=value` overrides."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from volseg.config.training import Config
from volseg.config.values import checked
from volseg.documents import DEEPEST, DocumentError, parse_yaml, read_or
from volseg.documents import read_yaml as read_document
from volseg.errors import ConfigError
from volseg.text import shortened

# Characters of an override in a message.
SHOWN = 100


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML configuration and apply `key=value` overrides such as `training.learning_rate=0.001`.

    Raises:
        ConfigError: a missing file, an unknown key or an invalid value, by name; or no path, or no list of texts.
    """
    if not (path is None or isinstance(path, str | Path)):
        raise ConfigError(
            f"The configuration is a {type(path).__name__}, expected the path of a YAML file. Give values as "
            'overrides, such as overrides=["training.learning_rate=0.001"].'
        )
    if not isinstance(overrides, list | tuple) or not all(isinstance(one, str) for one in overrides):
        raise ConfigError(
            f"The overrides are {shortened(repr(overrides), SHOWN)}, expected a list of texts, such as "
            'overrides=["training.learning_rate=0.001"].'
        )
    document = read_yaml(Path(path)) if path else {}
    # YAML reads a group without values as None.
    document = {key: {} if value is None else value for key, value in document.items()}
    for override in overrides:
        _apply_override(document, override)
    return checked(Config, document, str(path) if path else "the configuration")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping as a dict; an empty file is an empty dict.

    Raises:
        ConfigError: not readable, not YAML, a duplicate key, beyond the bounds of `volseg.documents`, or not a mapping.
    """
    document = read_or(ConfigError, read_document, Path(path), "valid YAML", "Give the path of a YAML file.")
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds a {type(document).__name__}, expected a mapping of keys to values.")
    return document


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    shown = repr(shortened(override, SHOWN))
    if not separator or not key:
        raise ConfigError(f"--set {shown} has no value; write key=value, for example training.learning_rate=0.001.")
    *parents, last = key.strip().split(".")
    if len(parents) > DEEPEST:
        raise ConfigError(f"--set {shown}: there is no key of {len(parents) + 1} parts.")
    for parent in parents:
        document = document.setdefault(parent, {})
        if not isinstance(document, dict):
            raise ConfigError(f"--set {shown}: '{parent}' is a value, not a group of values.")
    try:
        document[last] = parse_yaml(text)
    except DocumentError as error:
        raise ConfigError(f"--set {shown}: {shortened(text, SHOWN)!r} is not a YAML value: {error}.") from error
