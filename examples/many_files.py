"""A folder of scans to a folder of results; a file that cannot be read does not stop the others."""

from pathlib import Path

import nibabel

import volseg
from volseg.data.cases.phantom import make_phantom

scans = Path("scans")
scans.mkdir(exist_ok=True)
for seed in (1, 2):
    scan, _, affine = make_phantom(seed, "mr")
    nibabel.save(nibabel.Nifti1Image(scan, affine).slicer[8:36, 8:36, 2:26], scans / f"scan_{seed}.nii.gz")
(scans / "torn.nii.gz").write_bytes(b"not an image")

segmenter = volseg.Segmenter.load("hippocampus", device="cpu")  # or pass the name to predict
predictions = volseg.predict(scans, segmenter, "results", overwrite=True)  # checks everything, computes nothing yet
print(len(predictions), "cases")
failed = []
for prediction in predictions:  # reading, computing and writing overlap
    if prediction.error:
        failed.append(prediction.name)
        print(f"{prediction.name} failed: {prediction.error}")
    else:
        volumes = {name: label["volume_ml"] for name, label in prediction.record["labels"].items()}
        print(prediction.output, volumes, prediction.record["flags"])
