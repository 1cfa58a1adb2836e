"""Sending: results go to the archive, by C-STORE or STOW-RS, until they are taken or given up."""

import logging
from typing import Any

from pydicom import dcmread
from pydicom.filereader import read_file_meta_info
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, _config, build_context
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification

from volseg.node.config import Dimse, NodeConfig
from volseg.node.dicomweb import WebArchive
from volseg.node.errors import CLASS_NOT_SUPPORTED, DeliveryError, RefusedClassError
from volseg.node.receiver import client_context
from volseg.node.store import Store
from volseg.node.worker import NO_LABELMAP, reason_of

logger = logging.getLogger(__name__)

# Label Map Segmentation Storage.
LABELMAP_CLASS = "1.2.840.10008.5.1.4.1.1.66.7"
_NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
# Warnings of C-STORE: the object was stored (DICOM PS3.4 B.2.3).
_STORED = range(0xB000, 0xC000)


class Sender:
    """Sends the results of a node, and fetches series, one after another."""

    def __init__(self, config: NodeConfig, store: Store) -> None:
        self._config, self._store = config, store
        self._web = WebArchive(config) if config.archive.dicomweb else None

    def step(self) -> bool:
        """Send the next result or fetch the next series; whether there was one."""
        return self._send_next() or self._fetch_next()

    def _send_next(self) -> bool:
        queue = self._store.queue
        work = queue.claim("deliveries")
        if work is None:
            return False
        try:
            self._send(work["path"], work["sop_class"])
        except RefusedClassError as error:
            self._refused(work, error)
        except Exception as error:
            state = queue.retry("deliveries", work["id"], reason_of(error))
            logger.error("Object %s: %s: %s", work["sop_uid"], state, reason_of(error))
        else:
            queue.end("deliveries", work["id"], "sent")
            logger.info("Object %s: sent", work["sop_uid"])
        return True

    def _send(self, path: str, sop_class: str) -> None:
        if self._config.archive.by_web and self._web:
            self._web.send(path)
        elif self._config.archive.dimse:
            send_by_dimse(self._config, self._config.archive.dimse, path, sop_class)

    def _refused(self, work: dict[str, Any], error: RefusedClassError) -> None:
        """Make a LABELMAP anew as BINARY; anything else is tried again, as after any other failure."""
        queue = self._store.queue
        if work["sop_class"] != LABELMAP_CLASS:
            state = queue.retry("deliveries", work["id"], reason_of(error))
            logger.error("Object %s: %s: %s", work["sop_uid"], state, reason_of(error))
            return
        reason = "the archive takes no LABELMAP segmentations, so BINARY is written"
        queue.learn(NO_LABELMAP, "yes")
        queue.redo(work["id"], reason)
        logger.warning("Object %s: %s", work["sop_uid"], reason)

    def _fetch_next(self) -> bool:
        queue = self._store.queue
        work = queue.claim("fetches") if self._web else None
        if work is None or self._web is None:
            return False
        try:
            count = self._web.fetch(self._store, work["study_uid"], work["series_uid"])
        except Exception as error:
            state = queue.retry("fetches", work["id"], reason_of(error))
            logger.error("Series %s: fetch %s: %s", work["series_uid"], state, reason_of(error))
        else:
            queue.end("fetches", work["id"], "done")
            logger.info("Series %s: fetched, %d objects", work["series_uid"], count)
        return True


def send_by_dimse(config: NodeConfig, archive: Dimse, path: str, sop_class: str) -> None:
    """Send one DICOM file by C-STORE.

    Raises:
        DeliveryError: the archive is away or does not take it now.
        RefusedClassError: it does not take objects of this class.
    """
    _config.LOG_HANDLER_LEVEL = "none"
    # Without decoding the file; it needs a context of exactly its transfer syntax.
    _config.STORE_SEND_CHUNKED_DATASET = True
    syntax = str(read_file_meta_info(path).TransferSyntaxUID)
    syntaxes = [syntax, *(one for one in _NATIVE if syntax in _NATIVE and one != syntax)]
    entity = AE(ae_title=config.ae_title)
    seconds = config.limits.timeout_seconds
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = seconds
    association = entity.associate(
        archive.host,
        archive.port,
        # With Verification, an archive that takes nothing else accepts the association all the same and says so.
        contexts=[*(build_context(sop_class, one) for one in syntaxes), build_context(Verification)],
        ae_title=archive.ae_title,
        tls_args=(client_context(config.tls), archive.host) if archive.tls and config.tls else None,
    )
    if not association.is_established:
        how = "rejects the association" if association.is_rejected else "cannot be reached"
        raise DeliveryError(f"the archive {how}")
    try:
        _store(association, path, sop_class, syntax)
    finally:
        if association.is_established:
            association.release()


def _store(association: Association, path: str, sop_class: str, syntax: str) -> None:
    accepted = [
        context.transfer_syntax[0] for context in association.accepted_contexts if context.abstract_syntax == sop_class
    ]
    if not accepted:
        raise RefusedClassError("the archive does not accept the SOP class or its transfer syntax")
    answer = association.send_c_store(path if syntax in accepted else dcmread(path))
    if "Status" not in answer:
        raise DeliveryError("the connection to the archive was lost")
    if answer.Status == CLASS_NOT_SUPPORTED:
        raise RefusedClassError("the archive does not support the SOP class")
    if answer.Status != 0 and answer.Status not in _STORED:
        raise DeliveryError(f"the archive refused the object with status {answer.Status:04X}")
