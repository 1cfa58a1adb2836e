"""A node as a whole: its parts in threads, from the start to SIGTERM."""

import logging
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Self

from volseg.modelfile import find_model, read_card, sha256_of_model
from volseg.node.config import NodeConfig, load_node_config
from volseg.node.http.inbox import Inbox
from volseg.node.http.monitor import Counters, Monitor
from volseg.node.http.server import Server
from volseg.node.receiver import Receiver, server_context
from volseg.node.sender import Sender
from volseg.node.store import Store
from volseg.node.worker import Worker

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
# Pauses of loops that find nothing to do.
PAUSE_SECONDS = 0.2
CLEAN_SECONDS = 600.0


class Node:
    """A running node; leaving the context ends it after the current window and the current object.

    Raises:
        VolsegError: (when made) the configuration cannot be carried out: no such model, a port or store in use.
    """

    def __init__(self, config: NodeConfig) -> None:
        self._stop = threading.Event()
        models = {rule.model: _sha256(rule.model) for rule in config.rules}
        self.store = Store(config)
        counters = Counters()
        self._closing: list[Callable[[], None]] = [self.store.close]
        try:
            worker, sender = Worker(config, self.store, models, self._stop), Sender(config, self.store)
            self._loops = [
                self._loop("receiving", worker.settle, counters),
                self._loop("segmenting", worker.step, counters),
                self._loop("sending", sender.step, counters),
                self._loop("cleaning", lambda: self.store.clean(config.limits.keep_days), counters, CLEAN_SECONDS),
            ]
            self._closing.append(self._join)
            self.monitor: Server | None = None
            self.web: Server | None = None
            if config.monitor_port is not None:
                answers = [Monitor(self.store, counters).answer]
                self.monitor = self._closed_later(Server((LOOPBACK, config.monitor_port), answers))
            if config.http_port is not None:
                answers = [Inbox(self.store, counters, config.archive.dicomweb is not None).answer]
                context = server_context(config.tls) if config.tls else None
                server = Server((config.bind, config.http_port), answers, config.may_send, context)
                self.web = self._closed_later(server)
            self.receiver = Receiver(config, self.store, counters)
            self._closing.append(self.receiver.close)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything, in the reverse order of its start."""
        self._stop.set()
        while self._closing:
            self._closing.pop()()

    def _join(self) -> None:
        for thread in self._loops:
            thread.join()

    def _closed_later(self, server: Server) -> Server:
        self._closing.append(server.close)
        return server

    def _loop(
        self, name: str, step: Callable[[], bool | None], counters: Counters, pause: float = PAUSE_SECONDS
    ) -> threading.Thread:
        """Do steps in a thread until the end; a step that fails is done again later."""

        def run() -> None:
            while not self._stop.is_set():
                try:
                    busy = step()
                    counters.report(name, True)
                # The queue is on a disk, which may be full for a while.
                except Exception as error:
                    logger.error("A step of %s failed: %s", name, type(error).__name__)
                    logger.debug("Traceback of the error:", exc_info=error)
                    counters.report(name, False)
                    busy = False
                    self._stop.wait(1)
                if not busy:
                    self._stop.wait(pause)

        thread = threading.Thread(target=run, name=f"volseg-{name}", daemon=True)
        thread.start()
        counters.watch(name, thread)
        return thread


def _sha256(model: str) -> str:
    """The SHA-256 of a model file, which is checked first."""
    path = find_model(model)
    read_card(path)
    return sha256_of_model(path)


def serve(path: str | Path) -> None:
    """Run a node until Ctrl-C or SIGTERM.

    Raises:
        VolsegError: it cannot start.
    """
    config = load_node_config(path)
    # Libraries warn of odd values, and quote them; they may be a patient's.
    warnings.simplefilter("ignore")
    with Node(config) as node:
        logger.info("%s listens on %s port %d", config.ae_title, config.bind, node.receiver.port)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            logger.info("Stopping after the current window")
    logger.info("Stopped; what is not finished goes on at the next start")
