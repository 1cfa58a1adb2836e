"""The card of a model: the JSON document in the header of its file. It is read without torch."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    WrapValidator,
    model_serializer,
    model_validator,
)

from volseg.config import CUSTOM, ComponentRule, Frozen, Name, Plan, checked, labels_by_rule
from volseg.documents import BrokenDocumentError, DocumentError, parse_json
from volseg.errors import ConfigError, InputError, UsageError
from volseg.files import access_to, require_writable, sha256_of
from volseg.modelfile.calibration import Calibration
from volseg.modelfile.header import Header, read_header
from volseg.text import first_few, printable, shortened
from volseg.version import __version__

HEADER_KEY = "volseg"
# 3: networks have an architecture, "unet" in files of version 2.
SCHEMA_VERSION = 3
READABLE = (2, 3)
# The model in a run folder.
RUN_MODEL = "model.safetensors"
BUNDLED = Path(__file__).parent.parent / "models"
# Networks in one file: folds of several trainings.
MOST_MEMBERS = 100


class _Record(BaseModel):
    """What volseg reads of a record that may have more keys."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class _Mean(_Record):
    """The scores of a label."""

    dice: float | None
    cases: int = Field(ge=0)


class _Scores(_Record):
    """The scores of a network."""

    labels: dict[str, _Mean] = Field(default_factory=dict)
    foreground_dice: float | None = None


class _AllScores(_Scores):
    """The scores of a model."""

    members: tuple[_Scores, ...] = ()
    out_of_fold: _Scores | None = None


class _Ancestor(_Record):
    """A model that another one started from."""

    name: Name
    sha256: Name
    labels: dict[str, dict[str, str] | list[str]] = Field(default_factory=dict)
    channels: dict[str, dict[str, str] | list[str]] = Field(default_factory=dict)


class _Named(_Record):
    """The training of a member of an ensemble."""

    name: Name
    ancestors: tuple[_Ancestor, ...] = Field((), alias="from")


class _Training(_Record):
    """The training of a model."""

    members: tuple[_Named, ...] = ()
    ancestors: tuple[_Ancestor, ...] = Field((), alias="from")


def _fits(kind: type[_Record]) -> WrapValidator:
    """Checks that a document fits `kind` and leaves it as it is."""

    def check(document: Any, handler: Any) -> Any:
        kind.model_validate(document)
        return handler(document)

    return WrapValidator(check)


class ModelCard(Frozen):
    """The document in the header of a model file; together with the weights, all that prediction needs."""

    schema_version: int = SCHEMA_VERSION
    name: Name
    plan: Plan
    members: int = Field(1, ge=1, le=MOST_MEMBERS, description="networks whose logits are averaged, such as the folds")
    training: Annotated[dict[str, Any], _fits(_Training)] = Field(
        default_factory=dict, description="data, licence, cases, steps, seconds, seed"
    )
    postprocessing: dict[str, ComponentRule] = Field(
        default_factory=dict, description="by label name; chosen on the validation cases"
    )
    scores: Annotated[dict[str, Any], _fits(_AllScores)] = Field(
        default_factory=dict, description="on the validation cases, after postprocessing"
    )
    calibration: Calibration | None = Field(None, description="from probabilities to expected Dice and intervals")
    volseg_version: Name = __version__

    @model_serializer(mode="wrap")
    def _without_missing_calibration(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Older versions read the files of models without one.
        document: dict[str, Any] = handler(self)
        if document.get("calibration") is None:
            document.pop("calibration", None)
        return document

    @model_validator(mode="after")
    def _calibration_has_labels(self) -> Self:
        calibrated = self.calibration.labels.keys() if self.calibration else set()
        unknown = calibrated - {label.name for label in self.plan.labels}
        if unknown:
            raise ValueError(f"calibration has {first_few(sorted(unknown))}, but the plan has no such label")
        return self

    @model_validator(mode="after")
    def _rules_have_labels(self) -> Self:
        unknown = self.postprocessing.keys() - {label.name for label in self.plan.labels}
        if unknown:
            raise ValueError(
                f"postprocessing has rules for {first_few(sorted(unknown))}, but the plan has no such label"
            )
        unsafe = self.postprocessing.keys() - labels_by_rule(self.plan.labels).keys() if self.postprocessing else ()
        if unsafe:
            raise ValueError(
                f"postprocessing has rules for {first_few(sorted(unsafe))}, but another region contains it or overlaps "
                "it in part"
            )
        records = [record for record in (self.training.get("members"), self.scores.get("members")) if record]
        if any(len(record) != self.members for record in records):
            raise ValueError(f"training and scores have records of other numbers of members than {self.members}")
        return self


def bundled_models() -> dict[str, Path]:
    """The bundled models, by name."""
    return {path.stem: path for path in sorted(BUNDLED.glob("*.safetensors"))}


def find_model(model: str | Path) -> Path:
    """The path of a bundled model by name, or `model` itself as a path.

    Raises:
        InputError: `model` is neither a bundled name nor a file.
    """
    bundled = bundled_models()
    if str(model) in bundled:
        return bundled[str(model)]
    if os.path.isdir(model):
        raise InputError(f"{model} is a folder. Give a model file; that of a run folder is its model.safetensors.")
    if not os.path.isfile(model):
        names = ", ".join(bundled) or "none in this version"
        raise InputError(
            f"There is no model {str(model)!r}. Give the path of a model file or a bundled name ({names})."
        )
    return Path(model)


def check_cards(models: Iterable[str | Path], run: bool = True) -> None:
    """Refuse models whose header shows that they cannot be used, for callers that have not imported torch yet.

    Args:
        models: bundled names, model files or run folders; what does not exist is left to those who open it.
        run: whether their networks are to be built, not only described.

    Raises:
        InputError: see `read_card`.
        ConfigError: see `require_network_of_volseg`.
    """
    for model in models:
        path = bundled_models().get(str(model)) or Path(model)
        path = path / RUN_MODEL if os.path.isdir(path) else path
        if path.suffix == ".safetensors" and os.path.isfile(path):
            card = read_card(path)
            if run:
                require_network_of_volseg(card, path)


def check_model_path(path: Path, overwrite: bool) -> None:
    """Check that a model file can be written to `path`.

    Raises:
        UsageError: the file exists and `overwrite` is False, its name does not end in .safetensors, or the operating
            system does not allow it.
    """
    if path.suffix != ".safetensors":
        raise UsageError(f"{path} does not end in .safetensors. Choose a name that does.")
    require_writable([path])
    if path.exists() and not overwrite:
        raise UsageError(f"{path} already exists. Choose another name or add --overwrite.")


def read_card(path: Path) -> ModelCard:
    """The document in a model file's header, without its weights.

    Raises:
        InputError: not a model file of volseg, one beyond the bounds of a card, or one written by a newer version.
    """
    return card_of(read_header(path), path)


def card_of(header: Header, path: Path) -> ModelCard:
    """The card in the header of the model file at `path`.

    Raises:
        InputError: see `read_card`.
    """
    text = header.metadata.get(HEADER_KEY)
    if text is None:
        raise InputError(f"{path} holds weights but no '{HEADER_KEY}' document: it is not a model that volseg wrote.")
    place, again = f"The '{HEADER_KEY}' document in {path}", "Copy or download the model again."
    try:
        document = parse_json(text)
    except BrokenDocumentError as error:
        raise InputError(f"{place} is corrupt: {error}. {again}") from error
    except DocumentError as error:
        raise InputError(f"{place} was not written by volseg: {error}. Give a model of volseg.") from error
    found = document.get("schema_version") if isinstance(document, dict) else None
    if type(found) is not int:
        raise InputError(f"{place} is corrupt: it states no schema version. {again}")
    if found not in READABLE:
        raise InputError(
            f"{path} has schema version {found}, but this volseg reads {' and '.join(map(str, READABLE))}. "
            "Use the volseg that wrote it, or a newer one."
        )
    return checked(ModelCard, document, f"The document in {path}", InputError)


def own_network_of(card: ModelCard) -> str:
    """The name of the function or class that made the network of a model, as its card states it; only a text.

    Of an ensemble, that of its first member.
    """
    first: dict[str, Any] = next(iter(card.training.get("members") or ()), {})
    name = card.training.get("custom_network", first.get("custom_network"))
    return shortened(printable(name), 200) if isinstance(name, str) and name else "not named in its card"


def require_network_of_volseg(card: ModelCard, path: Path) -> None:
    """Refuse a model whose network volseg cannot build by itself.

    Raises:
        ConfigError: it was trained with a network of its own.
    """
    if card.plan.network.architecture == CUSTOM:
        raise ConfigError(
            f"The model {path} was trained with a network of its own ({own_network_of(card)}), and a model file holds "
            "no code. Load it in Python with volseg.Segmenter.load(path, network=...), giving the function or class "
            "that made the network; volseg.predict takes the loaded Segmenter, and volseg.ensemble takes network=, too."
        )


def sha256_of_model(path: Path) -> str:
    """The SHA-256 of a model file, as 64 hexadecimal digits.

    Raises:
        InputError: it cannot be read.
    """
    with access_to(path):
        return sha256_of(path)
