"""Receiving by DIMSE: an SCP of C-STORE and C-ECHO that acknowledges what is on disk, and nothing else."""

import logging
import ssl
import threading
from collections.abc import Callable
from typing import Any

from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AE, AllStoragePresentationContexts, _config, dimse_messages, evt
from pynetdicom.sop_class import Verification
from pynetdicom.transport import ThreadedAssociationServer

from volseg.errors import ConfigError
from volseg.node.config import NodeConfig, Tls
from volseg.node.errors import FullDiskError, ObjectError
from volseg.node.http.monitor import Counters
from volseg.node.store import Landing, Store

logger = logging.getLogger(__name__)

# Statuses of C-STORE (DICOM PS3.4 B.2.3).
SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
# Association rejected for good, by the service user, calling AE title not recognised (DICOM PS3.8 9.3.4).
_NOT_LISTED = (0x01, 0x01, 0x03)
# For now, by the presentation service: local limit exceeded.
_TOO_MANY = (0x02, 0x03, 0x02)
# Connections at a time, with those that have not said yet who they are; each has a thread.
_MOST_CONNECTIONS = 256
_HANDSHAKE_SECONDS = 30.0


class _Listener(ThreadedAssociationServer):  # type: ignore[misc]
    """The listening socket: who is not listed gets no thread, and a TLS handshake is made in that of its connection.

    pynetdicom's own makes it in the thread that accepts: one silent connection would hold up all others.
    """

    daemon_threads = True
    may_connect: Callable[[str], bool]
    tls: ssl.SSLContext | None = None

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 - of socketserver
        """Whether this address may connect."""
        return self.may_connect(client_address[0])

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Begin an association."""
        if self.tls:
            request.settimeout(_HANDSHAKE_SECONDS)
            request = self.tls.wrap_socket(request, server_side=True)
            request.settimeout(None)
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - of socketserver
        """A connection that failed is closed; nothing of it is printed."""
        logger.debug("A DICOM connection failed", exc_info=True)


def _reject(association: Any, reason: tuple[int, int, int]) -> None:
    association.acse.send_reject(*reason)
    association.kill()


class Receiver:
    """The SCP of a node, which listens until `close`."""

    def __init__(self, config: NodeConfig, store: Store, counters: Counters) -> None:
        self._config, self._store, self._counters = config, store, counters
        _receive_into(store)
        entity = AE(ae_title=config.ae_title)
        # `_requested` counts. pynetdicom would count connections that have not said who they are.
        entity.maximum_associations = _MOST_CONNECTIONS
        entity.network_timeout = entity.dimse_timeout = config.limits.timeout_seconds
        entity.require_called_aet = True
        entity.add_supported_context(Verification)
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(str(context.abstract_syntax), list(AllTransferSyntaxes))
        handlers: list[Any] = [
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_C_STORE, self._store_object),
            (evt.EVT_C_ECHO, lambda _: SUCCESS),
        ]
        context = server_context(config.tls) if config.tls else None
        self._lock = threading.Lock()
        self._admitted: list[Any] = []
        try:
            server = entity.make_server((config.bind, config.port), evt_handlers=handlers, server_class=_Listener)
        except OSError as error:
            raise ConfigError(
                f"The node cannot listen on {config.bind} port {config.port}: {error.strerror}. Choose another port or "
                "stop the program that has it."
            ) from error
        assert isinstance(server, _Listener)
        # pynetdicom adds those that it starts itself.
        entity._servers.append(server)
        server.may_connect, server.tls = self._may_connect, context
        self._entity, self._server = entity, server
        self._thread = threading.Thread(target=server.serve_forever, name="volseg-dicom", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port, also where the configuration has 0 for any that is free."""
        return int(self._server.socket.getsockname()[1]) if self._server.socket else self._config.port

    def close(self) -> None:
        """Stop to listen; associations are aborted, so that their peers know what was not acknowledged."""
        self._server.shutdown()
        self._entity.shutdown()

    def _may_connect(self, address: str) -> bool:
        """Whether any peer has this address; its AE title is looked at later."""
        if self._config.may_send(address):
            return True
        self._counters.add("rejected_associations")
        logger.warning("Closed a connection from %s, which is not in peers", address)
        return False

    def _requested(self, event: Any) -> None:
        """Reject an association that comes from nobody who is listed."""
        requestor = event.assoc.requestor
        title = requestor.primitive.calling_ae_title.strip()
        if not self._config.may_send(requestor.address, title):
            self._counters.add("rejected_associations")
            logger.warning("Rejected an association of %r from %s, which is not in peers", title, requestor.address)
            _reject(event.assoc, _NOT_LISTED)
            return
        with self._lock:
            self._admitted = [one for one in self._admitted if one.is_alive()]
            if full := len(self._admitted) >= self._config.limits.associations:
                self._counters.add("rejected_associations")
            else:
                self._admitted.append(event.assoc)
        if full:
            _reject(event.assoc, _TOO_MANY)

    def _store_object(self, event: Any) -> int:
        """Keep the object of a C-STORE request; the status of the answer."""
        landing: Landing = event.request._dataset_file
        landing.close()
        try:
            landing.require_whole()
            self._store.keep(landing.path)
        except FullDiskError as error:
            self._counters.add("refused_objects")
            logger.error("Answered out of resources: %s", error)
            return OUT_OF_RESOURCES
        except ObjectError as error:
            self._counters.add("refused_objects")
            logger.error("Refused an object: %s", error)
            return CANNOT_UNDERSTAND
        finally:
            landing.discard()
        return SUCCESS


def server_context(tls: Tls) -> ssl.SSLContext:
    """TLS for listening; with a `ca`, peers have to show a certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, tls)
    if tls.ca:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(tls: Tls) -> ssl.SSLContext:
    """TLS for connecting: the archive's certificate is checked by `ca`, or by the certificates of the system."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, tls)
    return context


def _load(context: ssl.SSLContext, tls: Tls) -> None:
    try:
        context.load_cert_chain(tls.certificate, tls.key)
        if tls.ca:
            context.load_verify_locations(tls.ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"The certificates in tls cannot be used: {error}. Give a certificate, its key without password and the "
            "certificate of its authority, as PEM files."
        ) from error


def _receive_into(store: Store) -> None:
    """Let pynetdicom receive data sets into files of the store, so that none is ever in memory as a whole.

    pynetdicom makes these files by `NamedTemporaryFile`, in a folder for all of the process, and a full disk would end
    the connection without an answer. The names below are those of pynetdicom 3.
    """
    _config.STORE_RECV_CHUNKED_DATASET = True
    _config.LOG_HANDLER_LEVEL = "none"
    dimse_messages.NamedTemporaryFile = lambda **_: store.new_file()
