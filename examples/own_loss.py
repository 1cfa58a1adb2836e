"""A loss of your own: Tversky, here with missed voxels counted more than false ones."""

from pathlib import Path

import torch

import volseg

DATASET = Path(__file__).parents[1] / "data_samples" / "phantoms"


def tversky(logits, target, missed=0.7, false=0.3):
    """1 - TP / (TP + missed FN + false FP), mean over the labels (Salehi et al. 2017, arXiv 1706.05721)."""
    annotated = target[:, None] >= 0  # -1 is ignored
    likely = logits.float().softmax(1)[:, 1:] * annotated  # (B, K - 1, D, H, W), without the background
    truth = torch.stack([target == label for label in range(1, logits.shape[1])], 1)
    hits, misses, errors = (one.sum((0, 2, 3, 4)) for one in (likely * truth, (1 - likely) * truth, likely * ~truth))
    return 1 - ((hits + 1) / (hits + missed * misses + false * errors + 1)).mean()


run = volseg.train(  # small and short; without `overrides` and `steps`, as planned for the dataset
    DATASET, "runs/tversky", loss=tversky, steps=40, device="cpu",
    overrides=["plan.features=[8, 16]", "plan.patch_size=[16, 32, 32]", "training.workers=0"],
)  # fmt: skip
print(run / "report.html")
