"""DICOMweb of the archive: results go out by STOW-RS; series come in by QIDO-RS and WADO-RS."""

import logging
from contextlib import suppress
from typing import Any

import requests
from dicomweb_client.web import DICOMwebClient
from pydicom import dcmread
from pydicom.dataset import Dataset

from volseg.errors import ResourceError
from volseg.node.config import NodeConfig, Web
from volseg.node.errors import CLASS_NOT_SUPPORTED, DeliveryError, RefusedClassError
from volseg.node.store import Store

logger = logging.getLogger(__name__)


class WebArchive:
    """The archive of a configuration, by DICOMweb."""

    def __init__(self, config: NodeConfig) -> None:
        web = config.archive.dicomweb
        assert web is not None
        self._client = DICOMwebClient(web.url, session=_session(config, web), timeout=config.limits.timeout_seconds)
        # The queue retries, and remembers it.
        self._client.set_http_retry_params(retry=False)

    def send(self, path: str) -> None:
        """Send one DICOM file by STOW-RS.

        Raises:
            DeliveryError: the archive is away or does not take it now.
            RefusedClassError: it does not take objects of this class.
        """
        try:
            answer = self._client.store_instances([dcmread(path)])
        except requests.RequestException as error:
            if error.response is not None:
                with suppress(ValueError):
                    _check(Dataset.from_json(error.response.json()))
            raise _not_answered(error) from error
        _check(answer)

    def fetch(self, store: Store, study_uid: str, series_uid: str) -> int:
        """Get what is missing of a series into the store, and say that it is complete; the number of its objects.

        Raises:
            DeliveryError: the archive is away or has no such series.
        """
        try:
            found = self._client.search_for_instances(study_uid, series_uid, get_remaining=True)
            uids = [Dataset.from_json(one).SOPInstanceUID for one in found]
            for sop_uid in uids:
                if not store.queue.has_instance(series_uid, sop_uid):
                    _keep(store, self._client.retrieve_instance(study_uid, series_uid, sop_uid))
        except requests.RequestException as error:
            raise _not_answered(error) from error
        if not uids or not store.queue.say_complete(series_uid):
            raise DeliveryError("the archive has no objects of this series")
        return len(uids)


def _not_answered(error: requests.RequestException) -> DeliveryError:
    if error.response is None:
        return DeliveryError(f"the archive cannot be reached ({type(error).__name__})")
    return DeliveryError(f"the archive answered with HTTP status {error.response.status_code}")


def _keep(store: Store, data: Dataset) -> None:
    landing = store.new_file()
    landing.close()
    try:
        data.save_as(landing.path, enforce_file_format=True)
        store.keep(landing.path)
    except OSError as error:
        raise ResourceError(f"An object could not be written to the store: {error.strerror}.") from error
    finally:
        landing.discard()


def _session(config: NodeConfig, web: Web) -> requests.Session:
    session = requests.Session()
    # Proxies and passwords come from the configuration alone.
    session.trust_env = False
    # Another address than that of the configuration gets nothing.
    session.max_redirects = 0
    if web.user is not None and web.password_file is not None:
        session.auth = (web.user, web.password_file.read_text(encoding="utf-8").strip())
    if config.tls:
        session.cert = (str(config.tls.certificate), str(config.tls.key))
        session.verify = str(config.tls.ca) if config.tls.ca else True
    return session


def _check(answer: Any) -> None:
    """Check the answer of STOW-RS.

    Raises:
        DeliveryError: it names a failure.
    """
    for item in answer.get("FailedSOPSequence", []):
        reason = int(item.get("FailureReason", 0))
        if reason == CLASS_NOT_SUPPORTED:
            raise RefusedClassError("the archive does not support the SOP class")
        raise DeliveryError(f"the archive refused the object with reason {reason:04X}")
