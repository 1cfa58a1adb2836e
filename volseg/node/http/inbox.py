"""DICOMweb of a node: objects come in by STOW-RS; an archive says that a series is complete, or is to be fetched.

POST [/PREFIX]/studies[/STUDY]                     STOW-RS
POST /series/SERIES/complete                       all of the series was sent
POST /studies/STUDY/series/SERIES/fetch            get the series from the archive (QIDO-RS, WADO-RS)
POST /retry                                        try again what was given up
"""

import json
import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from volseg.errors import InputError
from volseg.node.errors import FullDiskError, ObjectError
from volseg.node.http.monitor import Counters
from volseg.node.http.multipart import parts_of
from volseg.node.http.server import Handler
from volseg.node.store import Identity, Store, identity_of

logger = logging.getLogger(__name__)

_UID = r"([0-9.]{1,64})"
# Reasons of failure (DICOM PS3.18 10.5.3.1.1, with the statuses of C-STORE).
OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0xA700, 0xC000


class Inbox:
    """The answers of DICOMweb."""

    def __init__(self, store: Store, counters: Counters, can_fetch: bool) -> None:
        self._store, self._counters, self._can_fetch = store, counters, can_fetch

    def answer(self, handler: Handler, method: str, path: str) -> bool:
        """Answer a request if it is one of these; else False."""
        if method != "POST":
            return False
        if found := re.fullmatch(rf"(?:/[\w-]+)*/studies(?:/{_UID})?/?", path):
            self._stow(handler, found[1])
        elif found := re.fullmatch(rf"/series/{_UID}/complete", path):
            handler.reply(202 if self._store.queue.say_complete(found[1]) else 404, b"")
        elif found := re.fullmatch(rf"/studies/{_UID}/series/{_UID}/fetch", path):
            self._fetch(handler, found[1], found[2])
        elif path == "/retry":
            handler.reply(200, json.dumps({"waiting": self._store.queue.revive()}).encode())
        else:
            return False
        return True

    def _fetch(self, handler: Handler, study_uid: str, series_uid: str) -> None:
        if not self._can_fetch:
            raise InputError("The configuration has no archive.dicomweb to fetch from.")
        self._store.queue.add_fetch(study_uid, series_uid)
        handler.reply(202, b"")

    def _stow(self, handler: Handler, study_uid: str | None) -> None:
        """Store the objects of a request (DICOM PS3.18 10.5): 200 all, 202 some, 409 or 503 none."""
        kept: list[Identity] = []
        failed: list[tuple[Identity | None, int]] = []
        for part in parts_of(handler.body(), handler.headers.get("Content-Type", "")):
            landing = self._store.new_file()
            try:
                landing.fill(part)
                kept.append(self._store.keep(landing.path, study_uid))
            except (FullDiskError, ObjectError) as error:
                self._counters.add("refused_objects")
                logger.error("Refused an object: %s", error)
                reason = OUT_OF_RESOURCES if isinstance(error, FullDiskError) else CANNOT_UNDERSTAND
                failed.append((_identity(landing.path), reason))
            finally:
                landing.discard()
        handler.reply(_status(kept, failed), json.dumps(_answer(kept, failed)).encode(), "application/dicom+json")


def _identity(path: Path) -> Identity | None:
    """The UIDs of an object that was refused, if they can be read."""
    with suppress(ObjectError, OSError):
        return identity_of(path)
    return None


def _status(kept: list[Identity], failed: list[tuple[Identity | None, int]]) -> int:
    """The status of HTTP for the objects that were kept and those that were not."""
    if kept:
        return 202 if failed else 200
    full = any(reason == OUT_OF_RESOURCES for _, reason in failed)
    return (503 if full else 409) if failed else 400


def _answer(kept: list[Identity], failed: list[tuple[Identity | None, int]]) -> dict[str, Any]:
    """The answer of STOW-RS as DICOM JSON: ReferencedSOPSequence and FailedSOPSequence."""
    answer: dict[str, Any] = {}
    if kept:
        answer["00081199"] = {"vr": "SQ", "Value": [_reference(one) for one in kept]}
    if failed:
        refused = [{**_reference(one), "00081197": {"vr": "US", "Value": [reason]}} for one, reason in failed]
        answer["00081198"] = {"vr": "SQ", "Value": refused}
    return answer


def _reference(one: Identity | None) -> dict[str, Any]:
    if one is None:
        return {}
    return {"00081150": {"vr": "UI", "Value": [one.sop_class]}, "00081155": {"vr": "UI", "Value": [one.sop_uid]}}
