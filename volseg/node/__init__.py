"""A DICOM node: it receives series, segments them, and sends the results to an archive.

    receiver, http   take objects in: C-STORE, STOW-RS; /health and /metrics
    store            writes each to disk before it is acknowledged
    queue            what is known about every object, series, job and delivery, in SQLite
    rules            which models a series is for
    worker           segments complete series
    sender           sends results, by C-STORE or STOW-RS (dicomweb)
    service          runs all of these until SIGTERM

Whatever ends the process, at any moment: an acknowledged object is on disk and in the queue, and a job or delivery that
had begun is done again, with the same result. Logs and states name objects by UID and hold no patient data.
"""
