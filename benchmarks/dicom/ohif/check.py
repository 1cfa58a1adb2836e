"""Check in the real OHIF viewer that segments lie over the shapes of the phantom. Run by `make test-ohif`.

Every slice of a series is shown twice, with and without its segments. Where the grey level of the plain picture is that
of a label, the other one has to have the label's colour, and nowhere else. Both are what the viewer
draws, so neither the writer's nor the reader's idea of positions takes part.

    python -m benchmarks.dicom.ohif.check --output FOLDER
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.dicom.ohif.site import download, served
from tests.dicom.proof.phantom_series import INTENSITIES, LABELS, Series, result_of, write_series
from tests.node.orthanc import DICOMWEB, PROGRAM, Orthanc, free_port
from volseg.report.colours import label_colours

SERIES = (Series("axial"), Series("oblique sagittal", "down", "unequal", modality="MR"))
# Grey levels are intensities over 5: 0 to 255.
WINDOW, GREY = (0, 1275), 5
# Outlines may be drawn over neighbouring pixels; some 20 of them make the edge of a voxel.
LEAST_DICE, FURTHEST_PIXELS = 0.9, 3.0


def missing_programs() -> list[str]:
    """Which programs are not on this machine."""
    found = [name for name in ("chromium", "chromedriver", "npm") if shutil.which(name) is None]
    return [*([] if PROGRAM else ["Orthanc"]), *found, *([] if DICOMWEB.exists() else [str(DICOMWEB)])]


def overlay_of(plain: np.ndarray, drawn: np.ndarray, colours: dict[int, tuple[int, int, int]]) -> np.ndarray:
    """The segment that each pixel (height, width) is drawn in, 0 for none.

    A segment's colour is mixed into the plain pixel, so the change points from that to the colour.
    """
    change = drawn.astype(float) - plain
    found = np.zeros(change.shape[:2], int)
    best = np.full(found.shape, 0.95)
    strength = np.linalg.norm(change, axis=-1)
    for index, colour in colours.items():
        towards = np.array(colour, float) - plain
        likeness = (change * towards).sum(-1) / np.maximum(strength * np.linalg.norm(towards, axis=-1), 1e-9)
        better = (likeness > best) & (strength > 12)
        found[better], best[better] = index, likeness[better]
    return found


def compare(plain: np.ndarray, overlay: np.ndarray, values: dict[int, int]):
    """Per segment: (pixels of its grey level, pixels drawn, Dice, distance of the centres in pixels)."""
    grey, is_grey = plain.astype(int).mean(-1), np.ptp(plain.astype(int), axis=-1) <= 4
    for index, value in values.items():
        expected = is_grey & (np.abs(grey - INTENSITIES[value] / GREY) <= 6)
        found = overlay == index
        both = expected.sum() + found.sum()
        dice = 2 * (expected & found).sum() / both if both else 1.0
        apart = np.nan
        if expected.any() and found.any():
            apart = np.linalg.norm(np.argwhere(expected).mean(0) - np.argwhere(found).mean(0))
        yield index, int(expected.sum()), int(found.sum()), float(dice), float(apart)


def check_series(viewer, address: str, series: Series, output: Path) -> list[str]:
    """Faults of one series that is in the archive; pictures of it go to `output`."""
    viewer.open_study(address, Series().uid("study"))
    colours = viewer.open_segmentation()
    values = dict(zip(colours, (label.value for label in LABELS), strict=True))
    faults = colour_faults(colours)
    worst_dice, worst_distance, seen = 1.0, 0.0, set()
    for number in range(viewer.count_slices()):
        viewer.show_slice(number, WINDOW)
        plain, drawn = viewer.picture(False), viewer.picture(True)
        for index, expected, found, dice, apart in compare(plain, overlay_of(plain, drawn, colours), values):
            # Pixels of edges can have a label's grey level or colour by chance; a voxel has some 400.
            if max(expected, found) < 60:
                continue
            seen.add(index)
            worst_dice, worst_distance = min(worst_dice, dice), max(worst_distance, np.nan_to_num(apart, nan=np.inf))
            if dice < LEAST_DICE or not apart <= FURTHEST_PIXELS:
                faults.append(
                    f"slice {number + 1}, segment {index}: Dice {dice:.3f}, centres {apart:.1f} pixels apart, "
                    f"{expected} pixels expected, {found} drawn"
                )
        viewer.screenshot(output / f"{str(series).replace(' ', '-')}-{number + 1:02}.png")
    if seen != set(colours):
        faults.append(f"segments seen: {sorted(seen)}, expected {sorted(colours)}")
    print(f"{series}: {len(seen)} segments, least Dice {worst_dice:.3f}, furthest centre {worst_distance:.2f} pixels")
    return [f"{series}: {fault}" for fault in faults]


def colour_faults(colours: dict[int, tuple[int, int, int]]) -> list[str]:
    """Segments whose colour is not that of the preview."""
    expected = label_colours(LABELS)
    if len(colours) != len(expected):
        return [f"{len(colours)} segments, expected {len(expected)}"]
    return [
        f"segment {index} is drawn in {found}, expected {colour}"
        for (index, found), colour in zip(colours.items(), expected, strict=True)
        # Recommended colours are stored in CIELab.
        if max(abs(a - b) for a, b in zip(found, colour, strict=True)) > 2
    ]


def write_segmentation(folder: Path, path: Path) -> None:
    """Write the SEG of the series in `folder`."""
    result_of(folder).save(path, to="dicom-seg")


def check_all(output: Path) -> list[str]:
    """All faults of all series."""
    from benchmarks.dicom.ohif.viewer import chromium  # noqa: PLC0415 - selenium is installed for this command alone

    site, faults = download(), []
    output.mkdir(parents=True, exist_ok=True)
    for series in SERIES:
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            scan = write_series(folder / "scan", series)
            write_segmentation(scan, folder / "result.seg.dcm")
            archive = Orthanc(folder / "orthanc", ("NOBODY", free_port()))
            archive.start()
            try:
                for file in [*sorted(scan.iterdir()), folder / "result.seg.dcm"]:
                    archive.post("/instances", file.read_bytes())
                with served(site, f"127.0.0.1:{archive.http_port}") as address, chromium() as viewer:
                    faults += check_series(viewer, address, series, output)
            finally:
                archive.stop()
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path(tempfile.gettempdir()) / "volseg-ohif")
    output = parser.parse_args().output
    if missing := missing_programs():
        print(f"Not run, since this machine lacks {', '.join(missing)}.", file=sys.stderr)
        return 2
    faults = check_all(output)
    print("\n".join(faults) or "Every segment lies over its shape.")
    print(f"Pictures: {output}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
