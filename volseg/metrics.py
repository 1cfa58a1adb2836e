"""Metrics on arrays; see `volseg.evaluation.overlap` for the rule for empty masks."""

from volseg.evaluation.overlap import Overlap, dice, iou, label_overlaps, precision, recall

__all__ = ["Overlap", "dice", "iou", "label_overlaps", "precision", "recall"]
