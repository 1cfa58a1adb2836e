"""An array through a model: labels, probabilities and metrics. A phantom has no hippocampus, so it shows calls only."""

import nibabel
import numpy as np

import volseg
from volseg.data.cases.phantom import make_phantom
from volseg.metrics import dice, iou

scan, _, affine = make_phantom(seed=1, kind="mr")
image = nibabel.Nifti1Image(scan, affine).slicer[8:36, 8:36, 2:26]  # about as large as the scans of the training
array = np.asarray(image.dataobj)  # (I, J, K), any real dtype

segmenter = volseg.Segmenter.load("hippocampus", device="cpu")
result = segmenter((array, image.affine), probabilities=True)
print(result)

for channel, label in enumerate(segmenter.card.plan.labels, start=1):
    mask = result.labels == label.value
    likely = result.probabilities[channel] > 0.5  # (C, I, J, K) float16, background first
    volume = result.volumes_ml[label.name]
    print(f"{label.name}: {volume} mL, Dice {dice(mask, likely):.3f}, IoU {iou(mask, likely):.3f}")
