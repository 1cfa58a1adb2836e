"""What a node tells other programs about itself, on loopback: GET /health and GET /metrics (Prometheus)."""

import json
import threading
from collections import Counter
from typing import Any

from volseg.node.http.server import Handler
from volseg.node.queue import STATES
from volseg.node.store import Store

_HELP = {
    "instances": "Objects received since the store exists.",
    "series": "Series by state.",
    "jobs": "Jobs (a series and a model) by state.",
    "deliveries": "Results by state of their delivery.",
    "fetches": "Series to be fetched from the archive by state.",
    "free_disk_bytes": "Bytes free on the disk of the store.",
    "rejected_associations_total": "Associations of peers that are not listed, since the start.",
    "refused_objects_total": "Objects that were not accepted, since the start.",
}


class Counters:
    """Numbers of events since the start, and the threads that have to run; for all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter(rejected_associations=0, refused_objects=0)
        self._threads: dict[str, threading.Thread] = {}
        self._failing: set[str] = set()

    def add(self, name: str) -> None:
        """Count an event."""
        with self._lock:
            self._counts[name] += 1

    def watch(self, name: str, thread: threading.Thread) -> None:
        """Tell when a thread has ended, under a name."""
        with self._lock:
            self._threads[name] = thread

    def counts(self) -> dict[str, int]:
        """The number of each event."""
        with self._lock:
            return dict(self._counts)

    def report(self, name: str, works: bool) -> None:
        """Whether the last step of a watched thread worked."""
        with self._lock:
            (self._failing.discard if works else self._failing.add)(name)

    def failing(self) -> list[str]:
        """The names of watched threads whose last step failed."""
        with self._lock:
            return sorted(self._failing)

    def ended(self) -> list[str]:
        """The names of watched threads that have ended."""
        with self._lock:
            return [name for name, thread in self._threads.items() if not thread.is_alive()]


class Monitor:
    """The answers of /health and /metrics."""

    def __init__(self, store: Store, counters: Counters) -> None:
        self._store, self._counters = store, counters

    def answer(self, handler: Handler, method: str, path: str) -> bool:
        """Answer a request if it is one of these; else False."""
        if method != "GET" or path not in ("/health", "/metrics"):
            return False
        if path == "/metrics":
            handler.reply(200, self.metrics().encode(), "text/plain; version=0.0.4")
            return True
        problems = self.problems()
        handler.reply(503 if problems else 200, json.dumps({"ok": not problems, "problems": problems}).encode())
        return True

    def problems(self) -> list[str]:
        """Why the node is not healthy, a sentence each."""
        found = [f"The {name} has stopped." for name in self._counters.ended()]
        found += [f"The last step of {name} failed; see the log." for name in self._counters.failing()]
        if self._store.free_disk() < self._store.free_bytes:
            found.append("The disk of the store is almost full, so that objects are refused.")
        dead = sum(states.get("dead", 0) for states in self._store.queue.counts().values())
        return [*found, f"{dead} jobs, deliveries or fetches were given up; see volseg node status."] if dead else found

    def metrics(self) -> str:
        """All metrics in the text format of Prometheus."""
        values: dict[str, dict[str, Any] | int] = {
            "instances": self._store.queue.instance_count(),
            **{what: dict.fromkeys(STATES[what], 0) | states for what, states in self._store.queue.counts().items()},
            "free_disk_bytes": self._store.free_disk(),
            **{f"{name}_total": count for name, count in self._counters.counts().items()},
        }
        return "".join(_metric(name, value) for name, value in values.items())


def _metric(name: str, value: dict[str, Any] | int) -> str:
    kind = "counter" if name.endswith("_total") else "gauge"
    lines = [f"# HELP volseg_node_{name} {_HELP[name]}", f"# TYPE volseg_node_{name} {kind}"]
    if isinstance(value, int):
        lines.append(f"volseg_node_{name} {value}")
    else:
        lines += [f'volseg_node_{name}{{state="{state}"}} {count}' for state, count in value.items()]
    return "\n".join([*lines, ""])
