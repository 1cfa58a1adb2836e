"""The state of a node, for `volseg node status`; it needs neither a running node nor the extra `node`."""

from pathlib import Path
from typing import Any

from volseg.errors import InputError
from volseg.node.config import load_node_config
from volseg.node.queue import NAME, Queue


def status(path: str | Path) -> dict[str, Any]:
    """The state of everything in the queue of a node, whether it runs or not.

    Raises:
        InputError: no node has run with this configuration.
    """
    config = load_node_config(path)
    if not (config.store / NAME).is_file():
        raise InputError(
            f"There is no queue in {config.store}: no node has run with this configuration yet. Start one with "
            f"volseg node --config {path}."
        )
    queue = Queue(config.store)
    try:
        return queue.overview()
    finally:
        queue.close()
