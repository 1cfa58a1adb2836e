"""Other writers of DICOM results, used as their documentation shows, on the same phantom."""

from pathlib import Path

import highdicom
import numpy as np
import pydicom
from pydicom.sr.codedict import codes

from tests.dicom.proof.phantom_series import LABELS, Series


def plain_highdicom(scan: Path, series: Series, file: Path) -> None:
    """highdicom's `Segmentation` from the files of the series in the order of their names, as its guide has it."""
    files = sorted((pydicom.dcmread(one) for one in scan.iterdir()), key=lambda one: int(one.InstanceNumber))
    numbers = np.zeros(256, np.uint8)
    numbers[[label.value for label in LABELS]] = range(1, len(LABELS) + 1)
    algorithm = highdicom.AlgorithmIdentificationSequence("thresholds", codes.DCM.ArtificialIntelligence, "1")
    described = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=label.name,
            segmented_property_category=codes.SCT.Organ,
            segmented_property_type=codes.SCT.Organ,
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
        )
        for number, label in enumerate(LABELS, 1)
    ]
    highdicom.seg.Segmentation(
        source_images=files,
        pixel_array=np.ascontiguousarray(numbers[series.labels].transpose(2, 1, 0)),
        segmentation_type="BINARY",
        segment_descriptions=described,
        series_instance_uid=series.uid("peer series"),
        series_number=100,
        sop_instance_uid=series.uid("peer"),
        instance_number=1,
        manufacturer="peer",
        manufacturer_model_name="peer",
        software_versions="1",
        device_serial_number="1",
    ).save_as(file)


def rt_utils(scan: Path, series: Series, file: Path) -> None:
    """rt-utils' builder, with masks in the order of its own series data."""
    from rt_utils import RTStructBuilder  # noqa: PLC0415 - a peer that only this comparison needs

    built = RTStructBuilder.create_new(dicom_series_path=str(scan))
    order = [int(one.InstanceNumber) - 1 for one in built.series_data]
    masks = series.labels[:, :, order].transpose(1, 0, 2)
    for label in LABELS:
        built.add_roi(mask=masks == label.value, name=label.name)
    built.save(str(file))


WRITERS = {"highdicom dicom-seg": plain_highdicom, "rt-utils rtstruct": rt_utils}
