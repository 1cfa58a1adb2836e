"""The tables of the queue."""

from typing import Literal

NAME = "queue.sqlite"
Work = Literal["jobs", "deliveries", "fetches"]
WORK: tuple[Work, ...] = ("jobs", "deliveries", "fetches")
STATES = {
    "series": ("receiving", "complete", "no rule", "own", "removed"),
    "jobs": ("waiting", "running", "done", "failed", "dead"),
    "deliveries": ("waiting", "running", "sent", "replaced", "dead"),
    "fetches": ("waiting", "running", "done", "dead"),
}
# Raised when the tables change; a queue of another version is rejected.
VERSION = 1
SCHEMA = """
CREATE TABLE instances (
    series_uid TEXT NOT NULL, sop_uid TEXT NOT NULL, bytes INTEGER NOT NULL, received_at REAL NOT NULL,
    PRIMARY KEY (series_uid, sop_uid)) WITHOUT ROWID;
CREATE TABLE series (
    series_uid TEXT PRIMARY KEY, study_uid TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'receiving',
    instances INTEGER NOT NULL DEFAULT 0, last_at REAL NOT NULL,
    said_complete INTEGER NOT NULL DEFAULT 0, changed_at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY, series_uid TEXT NOT NULL, model TEXT NOT NULL, model_sha256 TEXT NOT NULL,
    formats TEXT NOT NULL, seen INTEGER NOT NULL DEFAULT 0, state TEXT NOT NULL DEFAULT 'waiting',
    attempts INTEGER NOT NULL DEFAULT 0, not_before REAL NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '',
    changed_at REAL NOT NULL, UNIQUE (series_uid, model_sha256));
CREATE TABLE deliveries (
    id INTEGER PRIMARY KEY, job_id INTEGER NOT NULL, path TEXT NOT NULL, sop_class TEXT NOT NULL, sop_uid TEXT NOT NULL,
    series_uid TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'waiting', attempts INTEGER NOT NULL DEFAULT 0,
    not_before REAL NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '', changed_at REAL NOT NULL,
    UNIQUE (job_id, sop_uid));
CREATE TABLE fetches (
    id INTEGER PRIMARY KEY, series_uid TEXT NOT NULL UNIQUE, study_uid TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting', attempts INTEGER NOT NULL DEFAULT 0, not_before REAL NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT '', changed_at REAL NOT NULL);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX series_by_state ON series (state);
CREATE INDEX deliveries_by_series ON deliveries (series_uid);
"""
