"""Write the brain tumour cases of a Decathlon folder as an nnU-Net v2 dataset with the three usual regions.

    python benchmarks/data/tumour_regions.py $VOLSEG_DATA/BraTS18_2mm runs/BraTS_regions

Labels 1 necrosis, 2 oedema, 3 enhancing become whole tumour (1, 2, 3), tumour core (1, 3) and enhancing tumour (3),
written in this order as 2, 1 and 3, so that a label image has the same values as before. Channels become one file each.
Needs nibabel and the dataset.
"""

import argparse
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np

REGIONS = {"background": 0, "whole tumour": [1, 2, 3], "tumour core": [1, 3], "enhancing tumour": 3}
ORDER = [2, 1, 3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="a Decathlon folder")
    parser.add_argument("output", type=Path, help="must not exist")
    options = parser.parse_args()
    write_regions(options.dataset, options.output)


def write_regions(dataset: Path, output: Path) -> None:
    """Write the nnU-Net dataset, complete or not at all."""
    document = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    made = output.with_name(f"{output.name}.part")
    shutil.rmtree(made, ignore_errors=True)
    for folder in ("imagesTr", "labelsTr"):
        (made / folder).mkdir(parents=True)
    for entry in document["training"]:
        name = Path(entry["label"]).name.removesuffix(".nii.gz")
        image = nibabel.load(dataset / entry["image"])
        for index, channel in enumerate(np.moveaxis(np.asanyarray(image.dataobj), -1, 0)):
            nibabel.save(nibabel.Nifti1Image(channel, image.affine), made / f"imagesTr/{name}_{index:04d}.nii.gz")
        shutil.copyfile(dataset / entry["label"], made / f"labelsTr/{name}.nii.gz")
    written = {
        "name": f"{document['name']}, regions",
        "channel_names": document["modality"],
        "labels": REGIONS,
        "regions_class_order": ORDER,
        "numTraining": len(document["training"]),
        "file_ending": ".nii.gz",
    }
    (made / "dataset.json").write_text(json.dumps(written, indent=2), encoding="utf-8")
    made.rename(output)


if __name__ == "__main__":
    main()
