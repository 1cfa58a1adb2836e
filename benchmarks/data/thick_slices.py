"""Make a dataset with simulated thick slices from one with thin slices, and name it so: an anisotropic task.

    python benchmarks/data/thick_slices.py $VOLSEG_DATA/Task04_Hippocampus runs/Task04_thick --thickness-mm 3.5

A thick slice is the mean of the thin slices in it, like a scanner's with a box-shaped slice profile, and has the label
that fills most of it; thin slices at its ends count in part. Thin slices left over at the end are dropped. Slices are
stacked along K; the layout is that of the Medical Segmentation Decathlon. Needs nibabel and the dataset.
"""

import argparse
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="a Decathlon folder")
    parser.add_argument("output", type=Path, help="must not exist")
    parser.add_argument("--thickness-mm", type=float, default=3.5)
    options = parser.parse_args()
    make_thick(options.dataset, options.output, options.thickness_mm)


def make_thick(dataset: Path, output: Path, thickness_mm: float) -> None:
    """Write the dataset with thick slices, complete or not at all."""
    document = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    document["name"] = f"{document.get('name', dataset.name)}, {thickness_mm:g} mm slices simulated"
    made = output.with_name(f"{output.name}.part")
    shutil.rmtree(made, ignore_errors=True)
    for folder, thick in (("imagesTr", thick_image), ("labelsTr", thick_label)):
        (made / folder).mkdir(parents=True)
        for path in sorted((dataset / folder).glob("[!.]*.nii.gz")):
            image = nibabel.load(path)
            matrix, affine = slices(image.shape[2], image.affine, thickness_mm)
            array = thick(np.asanyarray(image.dataobj), matrix)
            nibabel.save(nibabel.Nifti1Image(array, affine), made / folder / path.name)
    (made / "dataset.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    made.rename(output)


def slices(count: int, affine: np.ndarray, thickness_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """The fraction of each of `count` thin slices in each thick one, (thick, thin), and the thick affine."""
    step = thickness_mm / float(np.linalg.norm(affine[:3, 2]))
    edges = np.arange(int(count / step) + 1) * step
    thin = np.arange(count)
    overlap = np.minimum(edges[1:, None], thin + 1) - np.maximum(edges[:-1, None], thin)
    thick = affine.copy()
    thick[:3, 2] *= step
    # The centre of the first thick slice; centres of thin slices are whole numbers.
    thick[:3, 3] += affine[:3, 2] * (step - 1) / 2
    return overlap.clip(min=0) / step, thick


def thick_image(array: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The mean over each thick slice: (I, J, thick) float32."""
    return np.asarray(array @ matrix.T, dtype=np.float32)


def thick_label(array: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The label that fills most of each thick slice, the lowest where several do: (I, J, thick) uint8."""
    values = np.unique(array)
    fractions = np.stack([(array == value) @ matrix.T for value in values])
    return values[fractions.argmax(0)].astype(np.uint8)


if __name__ == "__main__":
    main()
