"""Surface distances of volseg, surface-distance, MONAI and MeshMetrics: errors against closed forms, and speed.

    python benchmarks/metrics.py [--pairs 10] [--repeats 3] [--toy] [--record]

Errors: spheres, boxes, sheets and single voxels whose distances are known, also at a spacing of 1 x 1 x 10 mm and at
the border of the image. Speed: pairs of 200 x 200 x 200 voxels with ten labels, read one after the other; for each
label Dice, Hausdorff distance (95 %), ASSD and normalised surface Dice at 1 mm. Each tool runs in its own process;
reading is part of the time, loading the tool is not. MeshMetrics, which measures between meshes, is part of the errors
alone. Needs volseg, MONAI and surface-distance, and MeshMetrics for its columns
(`pip install surface-distance pymeshmetrics`).
"""

import argparse
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from common.record import publish, record_options
from common.results import Row, headline, table
from common.sides import compared, report_side, run_side
from scipy.integrate import quad
from scipy.ndimage import zoom

LABELS = 10
SPACING = (1.0, 1.0, 2.5)
TOLERANCE = 1.0
Spacing = tuple[float, float, float]
# Hausdorff distance and ASSD of two masks.
Tool = Callable[[np.ndarray, np.ndarray, Spacing], tuple[float, float]]


class Shape(NamedTuple):
    """Two masks whose distances are known; NaN where the ASSD is not."""

    name: str
    prediction: np.ndarray
    reference: np.ndarray
    spacing: Spacing
    hausdorff: float
    assd: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--toy", action="store_true", help="two small pairs, for a quick check")
    record_options(parser)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        report_side(lambda: SIDES[options.side](options.folder), options.repeats)
        return
    edge = 40 if options.toy else 200
    with tempfile.TemporaryDirectory() as folder:
        for number in range(2 if options.toy else options.pairs):
            np.save(Path(folder) / f"{number}.npy", np.stack(label_pair(number, edge)))
        same = [f"--folder={folder}", f"--repeats={1 if options.toy else options.repeats}"]
        sides = {name: run_side([__file__, f"--side={name}", *same]) for name in SIDES}
    publish(
        options,
        "surface-metrics",
        f"Distances of {options.pairs} pairs of {edge} x {edge} x {edge} voxels with {LABELS} labels",
        [
            compared(sides, "MONAI"),
            compared(sides, "surface-distance"),
            table(error_rows(), caption="Error against closed forms: Hausdorff distance and ASSD, mm"),
        ],
        [headline("Dice, HD95, ASSD and NSD of ten pairs with ten labels", "volseg", "seconds", "MONAI")],
    )


def label_pair(seed: int, edge: int) -> tuple[np.ndarray, np.ndarray]:
    """A reference of ten balls of random size and place, and a prediction that is shifted and has another surface."""
    rng = np.random.default_rng(seed)
    centres, radii = rng.uniform(0.2, 0.8, (LABELS, 3)) * edge, rng.uniform(0.08, 0.2, LABELS) * edge
    grid = np.indices((edge, edge, edge), dtype=np.float32)
    pair = []
    for shift in (0.0, 1.0):
        bumps = zoom(rng.normal(size=(10, 10, 10)).astype(np.float32), edge / 10, order=1) * (1 + shift)
        image = np.zeros((edge, edge, edge), np.uint8)
        for label, (centre, radius) in enumerate(zip(centres, radii, strict=True), start=1):
            offsets = (axis - place - shift * rng.normal() for axis, place in zip(grid, centre, strict=True))
            image[np.sqrt(sum(offset**2 for offset in offsets)) + bumps < radius] = label
        pair.append(image)
    return pair[1], pair[0]


def pairs_in(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Prediction and reference of each file."""
    for path in sorted(folder.glob("*.npy")):
        prediction, reference = np.load(path)
        yield prediction, reference


def volseg_side(folder: Path) -> None:
    """All pairs with volseg, as `volseg evaluate` compares them."""
    from volseg.evaluation.label_distances import SurfaceOptions, label_distances
    from volseg.metrics import label_overlaps

    values = {str(label): label for label in range(1, LABELS + 1)}
    for prediction, reference in pairs_in(folder):
        label_overlaps(prediction, reference, values, math.prod(SPACING) / 1000)
        label_distances(prediction, reference, values, SPACING, SurfaceOptions(tolerance_mm=TOLERANCE))


def surface_distance_side(folder: Path) -> None:
    """All pairs with google-deepmind/surface-distance."""
    import surface_distance as tool

    for prediction, reference in pairs_in(folder):
        for label in range(1, LABELS + 1):
            predicted, true = prediction == label, reference == label
            distances = tool.compute_surface_distances(true, predicted, SPACING)
            tool.compute_dice_coefficient(true, predicted)
            tool.compute_robust_hausdorff(distances, 95)
            tool.compute_average_surface_distance(distances)
            tool.compute_surface_dice_at_tolerance(distances, TOLERANCE)


def monai_side(folder: Path) -> None:
    """All pairs with MONAI, all labels at once, as its metrics take them."""
    import torch
    from monai.metrics import compute_average_surface_distance as average
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

    for pair in pairs_in(folder):
        one_hot = [
            torch.stack([torch.from_numpy(image == label) for label in range(LABELS + 1)])[None] for image in pair
        ]
        options = {"include_background": False, "spacing": SPACING}
        compute_dice(*(image.float() for image in one_hot), include_background=False)
        compute_hausdorff_distance(*one_hot, percentile=95, **options)
        average(*one_hot, symmetric=True, **options)
        compute_surface_dice(*one_hot, [TOLERANCE] * LABELS, **options)


SIDES = {"volseg": volseg_side, "surface-distance": surface_distance_side, "MONAI": monai_side}


def error_rows() -> list[Row]:
    """The errors of each tool on each shape."""
    rows = []
    for shape in shapes():
        row: Row = {"shape": shape.name, "Hausdorff": round(shape.hausdorff, 3)}
        known = not math.isnan(shape.assd)
        row["ASSD"] = round(shape.assd, 3) if known else "-"
        for name, tool in TOOLS.items():
            hausdorff, assd = tool(shape.prediction, shape.reference, shape.spacing)
            row[f"{name}, Hausdorff"] = round(float(hausdorff) - shape.hausdorff, 3)
            row[f"{name}, ASSD"] = round(float(assd) - shape.assd, 3) if known else "-"
        rows.append(row)
    return rows


def shapes() -> Iterator[Shape]:
    """Shapes whose distances are known."""
    for spacing in ((1.0, 1.0, 1.0), (1.0, 1.0, 10.0)):
        size = "x".join(f"{step:g}" for step in spacing)
        grid = [
            (np.arange(edge) - (edge - 1) / 2) * step
            for edge, step in zip((80, 80, 80 if spacing[2] == 1 else 20), spacing, strict=True)
        ]
        near = np.sqrt(sum(np.square(axis) for axis in np.meshgrid(*grid, indexing="ij")))
        far = np.sqrt(
            sum(
                np.square(axis - shift)
                for axis, shift in zip(np.meshgrid(*grid, indexing="ij"), (4, 0, 0), strict=True)
            )
        )
        yield Shape(f"spheres of 30 and 25 mm, {size} mm", near <= 25, near <= 30, spacing, 5, 5)
        yield Shape(
            f"spheres of 25 mm, 4 mm apart, {size} mm", far <= 25, near <= 25, spacing, 4, shifted_sphere(25, 4)
        )
        for what, start in (("", 8), (" at the border", 0)):
            boxes = np.zeros((2, 40, 40, 20), bool)
            boxes[0, start : start + 20, 8:28, 4:14] = boxes[1, start : start + 20, 8:28, 5:15] = True
            yield Shape(f"boxes shifted by a slice{what}, {size} mm", boxes[0], boxes[1], spacing, spacing[2], math.nan)
        sheets = np.zeros((2, 30, 30, 20), bool)
        sheets[0, :, :, 5] = sheets[1, :, :, 9] = True
        yield Shape(
            f"sheets of one voxel, 4 slices apart, {size} mm",
            sheets[0],
            sheets[1],
            spacing,
            4 * spacing[2],
            4 * spacing[2],
        )
        voxels = np.zeros((2, 10, 10, 10), bool)
        voxels[0, 2, 2, 2] = voxels[1, 5, 6, 2] = True
        yield Shape(f"single voxels, 5 mm apart, {size} mm", voxels[0], voxels[1], spacing, 5, 5)


def shifted_sphere(radius: float, shift: float) -> float:
    """The mean distance of a sphere's surface to that of the sphere shifted: over u, the cosine to the shift."""

    def distance(u: float) -> float:
        return abs(math.sqrt(radius**2 + shift**2 - 2 * radius * shift * u) - radius)

    return quad(distance, -1, 1)[0] / 2


def of_volseg(definition: str) -> Tool:
    """Volseg with one of its definitions."""

    def tool(prediction: np.ndarray, reference: np.ndarray, spacing: Spacing) -> tuple[float, float]:
        from volseg.metrics import surface_distances

        found = surface_distances(prediction, reference, spacing, definition)
        return found.hausdorff(), found.assd()

    return tool


def surface_distance_tool(prediction: np.ndarray, reference: np.ndarray, spacing: Spacing) -> tuple[float, float]:
    """google-deepmind/surface-distance; it gives the two directions of the mean, which are averaged."""
    import surface_distance as tool

    distances = tool.compute_surface_distances(reference, prediction, spacing)
    directions = tool.compute_average_surface_distance(distances)
    return tool.compute_robust_hausdorff(distances, 100), sum(directions) / 2


def monai_tool(prediction: np.ndarray, reference: np.ndarray, spacing: Spacing) -> tuple[float, float]:
    """MONAI."""
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    both = [torch.from_numpy(mask)[None, None] for mask in (prediction, reference)]
    options = {"include_background": True, "spacing": spacing}
    hausdorff = compute_hausdorff_distance(*both, **options).item()
    return hausdorff, compute_average_surface_distance(*both, symmetric=True, **options).item()


def mesh_tool(prediction: np.ndarray, reference: np.ndarray, spacing: Spacing) -> tuple[float, float]:
    """MeshMetrics."""
    import meshmetrics

    found = meshmetrics.DistanceMetrics(verbose=False)
    found.set_input(reference, prediction, spacing)
    return found.hd(100), found.assd()


TOOLS: dict[str, Tool] = {
    "volseg": of_volseg("surface-distance"),
    "surface-distance": surface_distance_tool,
    "MONAI": monai_tool,
    "MetricsReloaded's formulas": of_volseg("metrics-reloaded"),
    **({"MeshMetrics": mesh_tool} if find_spec("meshmetrics") else {}),
}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
