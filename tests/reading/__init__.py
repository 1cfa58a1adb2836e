"""Scans whose right volume is known: writers of every format, what files mean by their standards, and other readers.

Nothing here imports volseg's readers or writers, so that what is right does not depend on them.
"""
