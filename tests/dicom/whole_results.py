"""Results about DICOM series of known labels, as `volseg.Segmenter` would return them."""

import numpy as np

from tests.data.io.dicom import writers
from volseg.api.result import Result
from volseg.config import Label
from volseg.inference.quality import measure

SHA = "0123456789abcdef" * 4
TABLE = (Label(name="ring", value=1), Label(name="kidney_left", value=2), Label(name="absent", value=9))
# What real series state of a patient and study, and the plain writers leave out.
PATIENT = {
    "PatientID": "P1", "PatientBirthDate": "19700101", "PatientSex": "O", "StudyDate": "20240203",
    "StudyTime": "101112", "StudyID": "S1", "AccessionNumber": "A1", "ReferringPhysicianName": "Doe^Jane",
}  # fmt: skip


def phantom(shape=(22, 18, 9)) -> np.ndarray:
    """Labels without any symmetry: a ring off the centre, and a block that is cut off by the last column."""
    i, j, k = np.indices(shape)
    labels = np.zeros(shape, dtype=np.uint8)
    away = np.hypot(i - 8, j - 7)
    labels[(away < 6.5) & (away > 3) & (k > 0) & (k < 7)] = 1
    labels[17:22, 10:16, 2:8] = 2
    return labels


def result_of(
    folder, labels=None, table=TABLE, kind=writers.classic, scan_flags=(), model="phantom", image=None, **attributes
) -> Result:
    """The result for a series that is written to `folder`, with `labels` (I, J, K) on its voxels."""
    labels = phantom() if labels is None else labels
    if image is None:
        image = labels.astype(np.int16) * 100 + np.random.default_rng(1).integers(0, 90, labels.shape, np.int16)
    writers.write_kind(folder, kind, image, **(PATIENT | attributes))
    scan = writers.read(folder)
    # Slices may be read in the other order.
    found = labels if np.array_equal(scan.channels[0], image) else labels[:, :, ::-1]
    measures = measure(found, table, scan.geometry.voxel_ml, unstated=scan.unstated)
    run = {"model": {"name": model, "sha256": SHA}, "precision": "fp32"}
    return Result(found, tuple(measures), tuple(scan_flags), scan, tuple(table), run)
