"""calibration.json of a run: what was changed in it is rejected in words before it is computed with."""

import pytest

from volseg.api.training.calibrate import pooled
from volseg.confidence.records import TEMPERATURES, LabelRecord, Records, ScanRecord
from volseg.errors import InputError
from volseg.modelfile.calibration import BINS

SUMS = ((10.0, 9.0, 8.0, 2.0),) * len(TEMPERATURES)
DIAGRAM = (((5.0, 2.0, 2.0),) * BINS,) * len(TEMPERATURES)


def records(reference_ml=0.01, **changes):
    label = LabelRecord.model_construct(
        dice=0.9, reference_ml=reference_ml, volume_ml=0.01, sums=changes.pop("sums", SUMS)
    )
    known = {"bins": DIAGRAM, "loss": (1.0,) * len(TEMPERATURES), **changes}
    return Records.model_construct(
        scans=tuple(
            ScanRecord.model_construct(case=f"case_{number}", voxel_ml=0.001, labels={"ball": label}, **known)
            for number in range(5)
        )
    )


def written(folder, found):
    (folder / "calibration.json").write_text(found.model_dump_json(warnings=False))
    return folder / "model.safetensors"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"sums": ((1.0, 2.0, 3.0),) * len(TEMPERATURES)}, r"sums\.0\.3' is missing"),
        ({"sums": ((1.0, 2.0, 3.0, 4.0, 5.0),) * len(TEMPERATURES)}, r"sums\.0'.*at most 4"),
        ({"bins": DIAGRAM[:3]}, r"bins'.*expected 16, one per temperature, or none; found 3"),
        ({"loss": (1.0,)}, r"loss'.*expected 16, one per temperature, or none; found 1"),
        ({"reference_ml": 1e300}, r"reference_ml'.*less than or equal"),
    ],
)
def test_damaged_sums_are_rejected_in_words(tmp_path, damage, message):
    with pytest.raises(InputError, match=message):
        pooled([written(tmp_path, records(**damage))])


def test_labels_of_a_huge_volume_are_calibrated(tmp_path):
    # A header in micrometres that claims millimetres: the sizes are wrong, and a training must not end in an error.
    found = pooled([written(tmp_path, records(reference_ml=1e12))])
    assert found.labels["ball"].typical_ml == 1e12
