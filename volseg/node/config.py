"""The configuration of a node: node.yaml. All defaults and units are defined here."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from volseg.config import Count, Frozen, checked, read_yaml
from volseg.config.values import Positive
from volseg.errors import ConfigError, UsageError
from volseg.inference.budget import parse_size
from volseg.modelfile import bundled_models
from volseg.node.rules import Rule


def _ae_title(text: str) -> str:
    if not re.fullmatch(r"[ -\[\]-~]{1,16}", text) or text != text.strip():
        raise ValueError("expected 1 to 16 ASCII characters without \\ or spaces at the ends")
    return text


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise ValueError("expected an IP address or a network such as 10.1.2.0/24") from error


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise ValueError("expected an IP address of this machine, or 0.0.0.0 for all") from error


def _url(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s/@]+(/\S*)?", text):
        raise ValueError("expected a URL such as https://archive:8042/dicom-web, without user or password")
    return text.rstrip("/")


def _device(text: str) -> str:
    # Whether this machine has it is seen when a model is loaded, and tried again.
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise ValueError("expected auto, cpu, cuda, cuda:N or mps")
    return text


def _memory(text: str | None) -> str | None:
    _bytes(text)
    return text


def _bytes(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_size(value)
    except UsageError as error:
        raise ValueError("expected bytes or a size such as 2G") from error


AETitle = Annotated[str, AfterValidator(_ae_title)]
Port = Annotated[int, Field(ge=0, le=65535)]
Size = Annotated[int, BeforeValidator(_bytes), Field(ge=0)]


class Peer(Frozen):
    """Who may send: both the calling AE title and the address must match; STOW-RS has the address alone."""

    ae_title: AETitle
    address: Annotated[str, AfterValidator(_network)]

    def matches(self, address: str) -> bool:
        """Whether an IP address is that of this peer, or in its network."""
        found = ipaddress.ip_address(address)
        mapped = getattr(found, "ipv4_mapped", None)
        return (mapped or found) in ipaddress.ip_network(self.address)


class Dimse(Frozen):
    """An archive that takes results by C-STORE."""

    ae_title: AETitle
    host: str
    port: Annotated[int, Field(ge=1, le=65535)]
    tls: bool = False


class Web(Frozen):
    """An archive with DICOMweb: it takes results by STOW-RS, and series can be fetched from it."""

    url: Annotated[str, AfterValidator(_url)]
    user: str | None = None
    password_file: Path | None = None

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.user is None) != (self.password_file is None):
            raise ValueError("expected user and password_file together, or neither")
        return self


class Archive(Frozen):
    """Where results go, and the only place they go."""

    dimse: Dimse | None = None
    dicomweb: Web | None = None
    send: Literal["dimse", "dicomweb"] | None = Field(None, description="how results are sent, if both are given")

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if not (self.dimse or self.dicomweb):
            raise ValueError("expected dimse, dicomweb or both")
        if self.send and getattr(self, self.send) is None:
            raise ValueError(f"send is {self.send}, but there is no {self.send}")
        return self

    @property
    def by_web(self) -> bool:
        """Whether results are sent by STOW-RS."""
        return self.dimse is None or self.send == "dicomweb"


class Retry(Frozen):
    """When work that failed is tried again: after first_seconds, then factor times as long as before."""

    first_seconds: Positive = 5.0
    factor: Annotated[float, Field(ge=1)] = 2.0
    longest_seconds: Positive = 900.0
    attempts: Count = 20

    def delay(self, attempts: int) -> float:
        """Seconds to wait after so many attempts."""
        # The exponent is bounded, because a float is.
        return min(self.first_seconds * self.factor ** min(attempts - 1, 64), self.longest_seconds)


class Limits(Frozen):
    """What the node may use."""

    associations: Count = 8
    free_disk: Size = Field(2**30, description="no object is accepted once less is free")
    keep_days: Positive = 7.0
    timeout_seconds: Positive = 60.0


class Tls(Frozen):
    """Certificates, PEM; with `ca`, peers have to show one that it has signed."""

    certificate: Path
    key: Path
    ca: Path | None = None


class Compute(Frozen):
    """As the options of volseg predict."""

    device: Annotated[str, AfterValidator(_device)] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    max_memory: Annotated[str | None, AfterValidator(_memory)] = None


class NodeConfig(Frozen):
    """A whole node.yaml."""

    ae_title: AETitle = "VOLSEG"
    bind: Annotated[str, AfterValidator(_address)] = "127.0.0.1"
    port: Port = 11112
    http_port: Port | None = None
    monitor_port: Port | None = None
    store: Path
    peers: Annotated[tuple[Peer, ...], Field(min_length=1)]
    archive: Archive
    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]
    quiet_seconds: Positive = 30.0
    retry: Retry = Retry()
    limits: Limits = Limits()
    tls: Tls | None = None
    compute: Compute = Compute()

    def may_send(self, address: str, ae_title: str | None = None) -> bool:
        """Whether a peer is listed, by its address and, for DIMSE, its AE title."""
        return any(one.matches(address) and ae_title in (None, one.ae_title) for one in self.peers)


def load_node_config(path: str | Path) -> NodeConfig:
    """Read node.yaml; relative paths in it are relative to its folder.

    Raises:
        ConfigError: a missing file, an unknown key or an invalid value, by name.
    """
    path = Path(path)
    config = checked(NodeConfig, read_yaml(path), str(path))
    folder = path.absolute().parent
    tls = config.tls and config.tls.model_copy(
        update={name: folder / value for name, value in config.tls if value is not None}
    )
    rules = tuple(
        rule if rule.model in bundled_models() else rule.model_copy(update={"model": str(folder / rule.model)})
        for rule in config.rules
    )
    archive = config.archive
    if archive.dicomweb and archive.dicomweb.password_file:
        web = archive.dicomweb.model_copy(update={"password_file": folder / archive.dicomweb.password_file})
        archive = archive.model_copy(update={"dicomweb": web})
    _require_files(path, tls, archive)
    update = {"store": folder / config.store, "tls": tls, "rules": rules, "archive": archive}
    return config.model_copy(update=update)


def _require_files(path: Path, tls: Tls | None, archive: Archive) -> None:
    named = [value for _, value in tls if value] if tls else []
    if archive.dicomweb and archive.dicomweb.password_file:
        named.append(archive.dicomweb.password_file)
    for file in named:
        if not file.is_file():
            raise ConfigError(f"{path} names {file}, which is not there. Correct its path; it is relative to {path}.")
    if archive.dimse and archive.dimse.tls and tls is None:
        raise ConfigError(f"{path} has archive.dimse.tls, but no tls. Give tls.certificate and tls.key.")
