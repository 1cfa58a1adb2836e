"""The queue of a node: every object, series, job and delivery, with its state, in one SQLite file.

    series      receiving -> complete: it has jobs | no rule | own: results of this node; then removed with its files
    job         waiting -> running -> done | failed: the series cannot be segmented | dead: given up
    delivery    waiting -> running -> sent | replaced: made anew for the archive | dead: given up
    fetch       waiting -> running -> done | dead: given up

Every change is one transaction, on disk when its function returns (WAL, synchronous=FULL). Work is claimed before it
starts, with the time from which it may be claimed again: work that ended with its process is claimed again, and work
that ends every process does not block the rest. Each table has one claimer.

No column holds patient data: UIDs, names of models and formats, and reasons without them.
"""

from volseg.node.queue.tables import NAME, STATES, WORK, Work
from volseg.node.queue.work import NewDelivery, NewJob, Queue

__all__ = ["NAME", "STATES", "WORK", "NewDelivery", "NewJob", "Queue", "Work"]
