"""Every change of the queue, each one transaction."""

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from volseg.errors import InputError
from volseg.node.config import Retry
from volseg.node.queue.tables import NAME, SCHEMA, VERSION, WORK, Work

_INSTANCES = "SELECT instances FROM series WHERE series.series_uid=jobs.series_uid"


class NewJob(NamedTuple):
    """A model for a series, and the formats of its results, separated by commas."""

    model: str
    sha256: str
    formats: str


class NewDelivery(NamedTuple):
    """A DICOM file to be sent, with what its header says."""

    path: str
    sop_class: str
    sop_uid: str
    series_uid: str


class Queue:
    """The queue in a folder; its functions may be called from any thread.

    Raises:
        InputError: (when made) it cannot be opened, or was written by another version.
    """

    def __init__(self, folder: Path, retry: Retry | None = None) -> None:
        self._retry = retry or Retry()
        self._lock = threading.RLock()
        self._path = folder / NAME
        try:
            self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=60)
            try:
                self._open()
            except BaseException:
                self._db.close()
                raise
        except sqlite3.DatabaseError as error:
            raise InputError(
                f"{self._path} cannot be opened: {error}. Check its permissions and its disk; it has to be the queue "
                "of a node."
            ) from error

    def _open(self) -> None:
        """Make the tables, if there are none."""
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        with self._transaction():
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, VERSION):
                raise InputError(
                    f"{self._path} has version {found}, but this volseg reads {VERSION}. Use the volseg that wrote it "
                    "until its queue is empty, or another store."
                )
            if not found:
                for statement in filter(str.strip, SCHEMA.split(";")):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={VERSION}")

    def require_whole(self) -> None:
        """Check the file page by page.

        Raises:
            InputError: it is damaged.
        """
        try:
            found = self._value("PRAGMA quick_check(1)")
        except sqlite3.DatabaseError as error:
            found = str(error)
        if found != "ok":
            self.close()
            raise InputError(
                f"{self._path} is damaged. Restore it from a backup or by the command .recover of sqlite3, or move the "
                "store away and send its series again."
            )

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All changes of the block, or none."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        with self._lock:
            return [dict(row) for row in self._db.execute(query, values)]

    def _value(self, query: str, *values: Any) -> Any:
        with self._lock:
            row = self._db.execute(query, values).fetchone()
        return None if row is None else row[0]

    # What is received.

    def has_instance(self, series_uid: str, sop_uid: str) -> bool:
        """Whether an object has been received and recorded."""
        found = self._value("SELECT 1 FROM instances WHERE series_uid=? AND sop_uid=?", series_uid, sop_uid)
        return found is not None

    def is_segmented(self, series_uid: str) -> bool:
        """Whether a model has already segmented a series."""
        return self._value("SELECT 1 FROM jobs WHERE series_uid=? AND state='done'", series_uid) is not None

    def add_instance(self, study_uid: str, series_uid: str, sop_uid: str, size: int) -> bool:
        """Record an object whose file is on disk; False if it was recorded before.

        A series that could not be segmented is tried again with it. One that was segmented is not: its `late` in
        `overview` says how many objects came afterwards.
        """
        now = time.time()
        with self._transaction() as db:
            added = db.execute("INSERT OR IGNORE INTO instances VALUES (?,?,?,?)", (series_uid, sop_uid, size, now))
            if not added.rowcount:
                return False
            db.execute(
                "INSERT OR IGNORE INTO series (series_uid, study_uid, last_at, changed_at) VALUES (?,?,?,?)",
                (series_uid, study_uid, now, now),
            )
            db.execute(
                "UPDATE series SET instances=instances+1, last_at=?, said_complete=0, state=CASE WHEN state IN "
                "('no rule','removed') THEN 'receiving' ELSE state END WHERE series_uid=?",
                (now, series_uid),
            )
            db.execute(
                "UPDATE jobs SET state='waiting', attempts=0, not_before=0 WHERE series_uid=? AND state='failed'",
                (series_uid,),
            )
        return True

    def wait_again(self) -> None:
        """The quiet time of series that were receiving when the last process ended begins anew.

        Their peers had no chance to send the rest.
        """
        with self._transaction() as db:
            db.execute("UPDATE series SET last_at=? WHERE NOT said_complete AND state='receiving'", (time.time(),))

    def instances_of(self, series_uid: str) -> set[str]:
        """The SOP Instance UIDs that are recorded of a series."""
        return {row["sop_uid"] for row in self._rows("SELECT sop_uid FROM instances WHERE series_uid=?", series_uid)}

    def say_complete(self, series_uid: str) -> bool:
        """Somebody who knows says that all of a series was sent; False if nothing of it was received."""
        with self._transaction() as db:
            changed = db.execute("UPDATE series SET said_complete=1 WHERE series_uid=?", (series_uid,))
        return changed.rowcount > 0

    def settled_series(self, quiet_seconds: float) -> list[str]:
        """The series of which nothing came for this time, or that are said to be complete, and are not decided."""
        rows = self._rows(
            "SELECT series_uid FROM series WHERE state='receiving' AND (said_complete OR last_at<=?) ORDER BY last_at",
            time.time() - quiet_seconds,
        )
        return [row["series_uid"] for row in rows]

    def is_own(self, series_uid: str) -> bool:
        """Whether this series is a result of this node."""
        return self._value("SELECT 1 FROM deliveries WHERE series_uid=?", series_uid) is not None

    def decide(self, series_uid: str, state: str, jobs: Iterable[NewJob] = ()) -> None:
        """Set the state of a complete series, and add its jobs; one that exists for a series and model stays."""
        now = time.time()
        with self._transaction() as db:
            db.execute("UPDATE series SET state=?, changed_at=? WHERE series_uid=?", (state, now, series_uid))
            for job in jobs:
                db.execute(
                    "INSERT OR IGNORE INTO jobs (series_uid, model, model_sha256, formats, changed_at) "
                    "VALUES (?,?,?,?,?)",
                    (series_uid, job.model, job.sha256, job.formats, now),
                )

    # Work.

    def use_models(self, models: Mapping[str, str]) -> None:
        """Jobs that are not done are for the files that their models have now, by SHA-256; one for each stays."""
        with self._transaction() as db:
            for model, sha256 in models.items():
                db.execute(
                    "UPDATE OR IGNORE jobs SET model_sha256=? WHERE model=? AND state!='done' AND model_sha256!=?",
                    (sha256, model, sha256),
                )

    def claim_job(self, quiet_seconds: float) -> dict[str, Any] | None:
        """The next job; one whose series still receives objects has to wait."""
        quiet = "series_uid IN (SELECT series_uid FROM series WHERE said_complete OR last_at<=?)"
        return self._claim("jobs", quiet, time.time() - quiet_seconds)

    def claim(self, table: Work) -> dict[str, Any] | None:
        """The next delivery or fetch; None if there is none for now."""
        return self._claim(table, "1")

    def _claim(self, table: Work, condition: str, *values: Any) -> dict[str, Any] | None:
        now = time.time()
        with self._transaction() as db:
            row = db.execute(
                f"SELECT * FROM {table} WHERE state IN ('waiting','running') AND not_before<=? AND {condition} "
                "ORDER BY attempts, id LIMIT 1",
                (now, *values),
            ).fetchone()
            if row is None:
                return None
            attempts = row["attempts"] + 1
            if attempts > self._retry.attempts:
                # Only work that ended with its process comes here.
                reason = row["reason"] or f"the process ended during each of {row['attempts']} attempts"
                self._set(db, table, row["id"], "dead", reason)
                return None
            db.execute(
                f"UPDATE {table} SET state='running', attempts=?, not_before=?, changed_at=? WHERE id=?",
                (attempts, now + self._retry.delay(attempts), now, row["id"]),
            )
            if table == "jobs":
                db.execute(f"UPDATE jobs SET seen=({_INSTANCES}) WHERE id=?", (row["id"],))
        return {**dict(row), "attempts": attempts}

    def retry(self, table: Work, number: int, reason: str) -> str:
        """Work that failed for now waits, or is dead after the last attempt; its new state."""
        with self._transaction() as db:
            attempts = db.execute(f"SELECT attempts FROM {table} WHERE id=?", (number,)).fetchone()[0]
            state = "dead" if attempts >= self._retry.attempts else "waiting"
            self._set(db, table, number, state, reason)
            db.execute(
                f"UPDATE {table} SET not_before=? WHERE id=?", (time.time() + self._retry.delay(attempts), number)
            )
        return state

    def release(self, table: Work, number: int) -> None:
        """Work that was stopped on purpose waits, as if it had not begun."""
        with self._transaction() as db:
            db.execute(f"UPDATE {table} SET attempts=attempts-1, not_before=0 WHERE id=?", (number,))
            self._set(db, table, number, "waiting", "")

    def end(self, table: Work, number: int, state: str, reason: str = "") -> None:
        """Set the last state of work."""
        with self._transaction() as db:
            self._set(db, table, number, state, reason)

    def finish_job(self, number: int, results: Iterable[NewDelivery]) -> bool:
        """A job is done: its results are to be sent; one that was sent before stays so.

        False, and the job waits, if more objects of its series came in the meantime: the results lack them.
        """
        now = time.time()
        with self._transaction() as db:
            if db.execute(f"SELECT seen<({_INSTANCES}) FROM jobs WHERE id=?", (number,)).fetchone()[0]:
                db.execute("UPDATE jobs SET attempts=0, not_before=0 WHERE id=?", (number,))
                self._set(db, "jobs", number, "waiting", "more objects came while it was segmented")
                return False
            db.execute("UPDATE jobs SET state='done', changed_at=? WHERE id=?", (now, number))
            for result in results:
                db.execute(
                    "INSERT INTO deliveries (job_id, path, sop_class, sop_uid, series_uid, changed_at) "
                    "VALUES (?,?,?,?,?,?) ON CONFLICT DO UPDATE SET state='waiting', attempts=0, not_before=0, "
                    "reason='' WHERE state='replaced'",
                    (number, *result, now),
                )
        return True

    def redo(self, delivery: int, reason: str) -> None:
        """A result that the archive does not take is replaced by another one: its job is done again.

        So are the other results that are not sent yet, which may refer to it.
        """
        with self._transaction() as db:
            job = db.execute("SELECT job_id FROM deliveries WHERE id=?", (delivery,)).fetchone()[0]
            db.execute(
                "UPDATE deliveries SET state='replaced', reason=?, changed_at=? WHERE job_id=? AND state!='sent'",
                (reason, time.time(), job),
            )
            db.execute("UPDATE jobs SET attempts=0, not_before=0 WHERE id=?", (job,))
            self._set(db, "jobs", job, "waiting", reason)

    def add_fetch(self, study_uid: str, series_uid: str) -> None:
        """A series is to be fetched from the archive; once more if that was done or given up."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO fetches (series_uid, study_uid, changed_at) VALUES (?,?,?) ON CONFLICT DO UPDATE SET "
                "state='waiting', attempts=0, not_before=0, reason='' WHERE state IN ('done','dead')",
                (series_uid, study_uid, time.time()),
            )

    def revive(self) -> int:
        """Dead and failed work waits again, with new attempts; facts are forgotten; how much work that is."""
        with self._transaction() as db:
            db.execute("DELETE FROM facts")
            changed = [
                db.execute(
                    f"UPDATE {table} SET state='waiting', attempts=0, not_before=0, changed_at=? "
                    "WHERE state IN ('dead','failed')",
                    (time.time(),),
                ).rowcount
                for table in WORK
            ]
        return sum(changed)

    def reopen_series(self) -> None:
        """Series that no rule was for are decided again: the rules may be others now."""
        with self._transaction() as db:
            db.execute("UPDATE series SET state='receiving' WHERE state='no rule'")

    @staticmethod
    def _set(db: sqlite3.Connection, table: Work, number: int, state: str, reason: str) -> None:
        db.execute(
            f"UPDATE {table} SET state=?, reason=?, changed_at=? WHERE id=?", (state, reason, time.time(), number)
        )

    # What the node remembers, and what it shows.

    def fact(self, name: str) -> str | None:
        """What was learnt, such as that the archive takes no LABELMAP."""
        found = self._value("SELECT value FROM facts WHERE name=?", name)
        return None if found is None else str(found)

    def learn(self, name: str, value: str) -> None:
        """Remember something under a name."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO facts VALUES (?,?)", (name, value))

    def removable_series(self, older_than: float) -> list[str]:
        """The series with nothing left to do, unchanged since a time; what is failed or dead stays for people."""
        rows = self._rows(
            "SELECT series_uid FROM series WHERE state NOT IN ('receiving','removed') AND last_at<=? AND changed_at<=? "
            "AND series_uid NOT IN (SELECT jobs.series_uid FROM jobs LEFT JOIN deliveries ON job_id=jobs.id WHERE "
            "jobs.state!='done' OR jobs.changed_at>? OR deliveries.state NOT IN ('sent','replaced') "
            "OR deliveries.changed_at>?)",
            *(4 * [older_than]),
        )
        return [row["series_uid"] for row in rows]

    def jobs_of(self, series_uid: str) -> list[int]:
        """The numbers of the jobs of a series."""
        return [row["id"] for row in self._rows("SELECT id FROM jobs WHERE series_uid=?", series_uid)]

    def counts(self) -> dict[str, dict[str, int]]:
        """The number of series, jobs, deliveries and fetches in each state that occurs."""
        return {
            table: {
                row["state"]: row["n"]
                for row in self._rows(f"SELECT state, COUNT(*) AS n FROM {table} GROUP BY state ORDER BY state")
            }
            for table in ("series", *WORK)
        }

    def instance_count(self) -> int:
        """The number of objects received since the store exists."""
        return int(self._value("SELECT COUNT(*) FROM instances"))

    def overview(self) -> dict[str, Any]:
        """Everything with its state, for `volseg node status`."""
        return {
            "instances": self.instance_count(),
            "counts": self.counts(),
            "series": self._rows("SELECT * FROM series ORDER BY last_at"),
            "jobs": self._rows(
                f"SELECT *, CASE state WHEN 'done' THEN ({_INSTANCES})-seen ELSE 0 END AS late FROM jobs ORDER BY id"
            ),
            "deliveries": self._rows("SELECT * FROM deliveries ORDER BY id"),
            "fetches": self._rows("SELECT * FROM fetches ORDER BY id"),
        }
