"""DICOM series of one asymmetric phantom, in any orientation, and its labels by a known rule.

The phantom is given in patient millimetres, so that every series of it shows the same body. No mirror image, rotation
or exchange of axes maps it to itself: five shapes of different kinds lie on different sides of its centre.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.uid import generate_uid

from tests.data.io.dicom.writers import CT, ENHANCED_CT, ENHANCED_MR, MR, classic, enhanced, write_all
from tests.dicom.proof.required import complete
from volseg.api.result import Result
from volseg.config import Label
from volseg.data.io.reading import read_scan
from volseg.inference.quality import measure

# LPS+ of the body's centre, away from the origin and from the centre of every grid.
CENTRE = np.array([41.0, -63.0, 117.0])
# The centre of the grid lies here, seen from that of the body.
OFFSET = np.array([2.3, -3.1, 1.7])
# Columns, rows and slices.
SIZE = (44, 36, 20)
LABELS = (
    Label(name="Liver", value=1),
    Label(name="Spleen", value=2),
    Label(name="Left Kidney", value=3),
    Label(name="Phantom hook", value=4),
    Label(name="Phantom grain", value=7),
)
# What a voxel of each label holds, and of air and the body around them; the rule takes what is within 40.
INTENSITIES = {1: 300, 2: 500, 3: 700, 4: 900, 7: 1100}
AIR, BODY = 0, 100
# What is stored for zero in CT.
CT_ZERO = 1024


def _turned(degrees: tuple[float, float], axes: np.ndarray) -> np.ndarray:
    """Rows and columns (3, 2), rotated about z, then about x."""
    (cz, cx), (sz, sx) = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    return about_x @ about_z @ axes


AXIAL = np.array([[1.0, 0, 0], [0, 1, 0]]).T
SAGITTAL = np.array([[0.0, 1, 0], [0, 0, -1]]).T
CORONAL = np.array([[1.0, 0, 0], [0, 0, -1]]).T
# Directions of rows and columns, (3, 2), in LPS+.
ORIENTATIONS = {
    "axial": AXIAL,
    "sagittal": SAGITTAL,
    "coronal": CORONAL,
    "oblique": _turned((20, -25), AXIAL),
    "oblique sagittal": _turned((17, 12), SAGITTAL),
}
# mm between columns, rows and slices.
SPACINGS = {"equal": (1.25, 1.25, 2.0), "unequal": (1.0, 1.5, 2.2)}


@dataclass(frozen=True)
class Series:
    """A series of the phantom.

    Args:
        orientation: a key of `ORIENTATIONS`.
        direction: "up" if files follow the normal (rows x columns), "down" against it.
        spacing: a key of `SPACINGS`.
        kind: "classic", one file per slice, or "enhanced", one file.
        modality: "CT" or "MR".
    """

    orientation: str = "axial"
    direction: str = "up"
    spacing: str = "equal"
    kind: str = "classic"
    modality: str = "CT"

    def __str__(self) -> str:
        return f"{self.orientation} {self.direction} {self.spacing} {self.kind} {self.modality}"

    @property
    def matrix(self) -> np.ndarray:
        """4 x 4, from column, row and slice in the order of the files to LPS+ millimetres."""
        axes, sizes = ORIENTATIONS[self.orientation], np.array(SPACINGS[self.spacing])
        normal = np.cross(axes[:, 0], axes[:, 1]) * (1 if self.direction == "up" else -1)
        found = np.eye(4)
        found[:3, :3] = np.column_stack([axes, normal]) * sizes
        found[:3, 3] = CENTRE + OFFSET - found[:3, :3] @ ((np.array(SIZE) - 1) / 2)
        return found

    @property
    def labels(self) -> np.ndarray:
        """The true labels, (columns, rows, slices), from the shapes themselves."""
        return labels_at(points(self.matrix, SIZE))

    def uid(self, *what: object) -> str:
        """A UID that is the same in every run; `what` it names, nothing for the series."""
        return generate_uid(entropy_srcs=["volseg position phantom", str(self), *map(str, what)])


def points(matrix: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Centres of all voxels, (*size, 3)."""
    return np.moveaxis(np.indices(size), 0, -1) @ matrix[:3, :3].T + matrix[:3, 3]


def labels_at(where: np.ndarray) -> np.ndarray:
    """The label of each point (..., 3) in LPS+ millimetres, uint8."""
    x, y, z = np.moveaxis(where - CENTRE, -1, 0)
    found = np.zeros(x.shape, np.uint8)
    # An ellipsoid of three different radii, to the left.
    found[((x - 9) / 6) ** 2 + ((y - 2) / 8) ** 2 + ((z + 3) / 5) ** 2 <= 1] = 1
    # A tube with a hole through it, to the right and behind.
    radius = np.hypot(x + 9, z - 1)
    found[(radius <= 6) & (radius >= 2.9) & (y >= 1) & (y <= 11)] = 2
    # A small ball, high in front.
    found[(x - 3) ** 2 + (y + 10) ** 2 + (z - 7) ** 2 <= 4**2] = 3
    # A hook: three bars of different lengths at right angles, low in front.
    hook = _box(x, -14, -2, y, -14, -10, z, -9, -5)
    hook |= _box(x, -14, -10, y, -14, -5, z, -9, -5)
    hook |= _box(x, -14, -10, y, -14, -10, z, -9, 0)
    found[hook] = 4
    # A few voxels, or a single one, behind the ellipsoid.
    found[(x - 5) ** 2 + (y - 12) ** 2 + (z - 4) ** 2 <= 1.5**2] = 7
    return found


def _box(x, x0, x1, y, y0, y1, z, z0, z1):
    return (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1) & (z >= z0) & (z <= z1)


def intensities_at(where: np.ndarray) -> np.ndarray:
    """What a scan of the phantom holds at each point (..., 3), int16."""
    labels, distances = labels_at(where), np.linalg.norm((where - CENTRE) / [19, 17, 15], axis=-1)
    found = np.where(distances <= 1, BODY, AIR).astype(np.int16)
    for value, intensity in INTENSITIES.items():
        found[labels == value] = intensity
    return found


def by_threshold(array: np.ndarray) -> np.ndarray:
    """The known rule: the label of each voxel of a scan, from its intensity alone."""
    found = np.zeros(array.shape, np.uint8)
    for value, intensity in INTENSITIES.items():
        found[np.abs(array.astype(np.float64) - intensity) < 40] = value
    return found


def write_series(folder: Path, series: Series, **options) -> Path:
    """Write a series into a folder."""
    matrix = series.matrix
    array, is_ct = intensities_at(points(matrix, SIZE)), series.modality == "CT"
    array = (array + CT_ZERO if is_ct else array).astype(np.uint16)
    positions = (np.arange(SIZE[2])[:, None] * matrix[:3, 2] + matrix[:3, 3]).round(6)
    axes, spacing = ORIENTATIONS[series.orientation].round(9), SPACINGS[series.spacing]
    stated = {"PixelSpacing": f"{spacing[1]:g}\\{spacing[0]:g}", "SliceThickness": f"{spacing[2]:g}"}
    if series.kind == "classic":
        found = classic(array, positions, axes, CT if is_ct else MR, **stated)
    else:
        shared = ("ImageOrientationPatient", "PixelSpacing", "SliceThickness")
        found = [enhanced(array, positions, axes, ENHANCED_CT if is_ct else ENHANCED_MR, shared=shared, **stated)]
    for number, data in enumerate(found):
        complete(data, series, number)
    return write_all(folder, found, **options)


def result_of(folder: Path) -> Result:
    """A series segmented by the known rule in place of a network."""
    return made_result(read_scan(folder))


def made_result(scan, table=LABELS) -> Result:
    labels = by_threshold(scan.channels[0])
    measures = tuple(measure(labels, table, scan.geometry.voxel_ml, unstated=scan.unstated))
    run = {
        "model": {"name": "thresholds", "sha256": "0123456789abcdef" * 4},
        "device": "cpu",
        "precision": "fp32",
        "overlap": 0.5,
        "mirror_axes": [],
        "crop": "none",
        "postprocessing": {},
        **scan.chosen,
        "seconds": {},
        "peak_memory_bytes": 0,
    }
    return Result(labels, measures, (), scan, tuple(table), run)
