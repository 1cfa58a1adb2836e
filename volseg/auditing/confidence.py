"""The confidence with which a model contradicts a reference, from its logits as they are computed.

Probabilities are never held: of each voxel, one byte is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from volseg.auditing.question import Question
from volseg.config import Triple
from volseg.data.grid.geometry import GridMap

# Called with a plane, its rows, and their logits (K, rows, columns) float32; see `volseg.inference.upsample.Sink`.
Take: TypeAlias = Callable[[int, slice, torch.Tensor], None]
# The byte of full confidence.
FULL = 255


def confidence_of(question: Question, stated: np.ndarray, grid: GridMap, order: Triple) -> tuple[np.ndarray, Take]:
    """An array for the confidence, and a function that fills it from logits.

    Outside the crop of `grid` the scan holds nothing and the model says background: a label there is contradicted with
    full confidence.

    Args:
        question: the labels that are compared.
        stated: (I, J, K) codes of the reference.
        grid: the mapping between image space and network space; logits come on its oriented crop.
        order: axes of the crop; planes come in the order of the first.

    Returns:
        (I, J, K) uint8, `FULL` times `Question.doubts`; and the function.
    """
    confidence = np.where(stated > 0, np.uint8(FULL), np.uint8(0))
    planes, references = grid.into(confidence).transpose(order), grid.into(stated).transpose(order)

    def take(plane: int, rows: slice, logits: torch.Tensor) -> None:
        codes = torch.from_numpy(references[plane, rows].astype(np.int64)).to(logits.device)
        doubts = question.doubts(logits, codes)
        planes[plane, rows] = (FULL * doubts).round().clamp(0, FULL).to(torch.uint8).cpu().numpy()

    return confidence, take


@dataclass(frozen=True, eq=False)
class Contradiction:
    """A reference and a prediction in codes, and how confident the model is where they differ.

    Args:
        question: the labels that are compared.
        stated: (I, J, K) codes of the reference.
        found: (I, J, K) codes of the prediction; as the reference where it says nothing.
        confidence: (I, J, K) uint8; 0 where they agree.
    """

    question: Question
    stated: np.ndarray
    found: np.ndarray
    confidence: np.ndarray

    @classmethod
    def between(
        cls, question: Question, reference: np.ndarray, labels: np.ndarray, raw: np.ndarray, confidence: np.ndarray
    ) -> "Contradiction":
        """Compare two label images, (I, J, K) each.

        Args:
            question: the labels that are compared.
            reference: label values.
            labels: the predicted ones.
            raw: the predicted ones before postprocessing, which overrules the model without any confidence.
            confidence: see `confidence_of`; changed in place.
        """
        stated, found = question.codes(reference), question.codes(labels)
        ignored = question.ignored(reference)
        if ignored is not None:
            found[ignored] = 0
        confidence[(stated == found) | (question.codes(raw) != found)] = 0
        return cls(question, stated, found, confidence)
