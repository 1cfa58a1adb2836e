"""Kinds of DICOM: what is one volume, what is none, and what stored values mean."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from tests.fuzzing.inputs import Input
from tests.fuzzing.outcomes import GOOD, outcome_of
from tests.reading import dicom
from tests.reading.dicom_meaning import enhanced_meaning
from tests.reading.kinds import DESCRIBED, NAMED, SEVERAL, VOLUME, kind
from tests.reading.right import Right
from tests.reading.volume import Volume, difference
from volseg.data.io.reading import read_scan
from volseg.errors import InputError


def fault(path: Path, right: Right, damaged: bool = False) -> str:
    outcome = outcome_of(Input(0, "dicom", path, "", right, damaged, False))
    return "" if outcome.kind in GOOD else f"{outcome.kind}: {outcome.detail}"


def refused_for(path: Path, *words: str) -> None:
    """Refused in a sentence with one of the words."""
    assert fault(path, Right()) == ""
    with pytest.raises(InputError) as caught:
        read_scan(path)
    said = str(caught.value).replace(str(path), "PATH").lower()
    assert any(word in said for word in words), said


@pytest.mark.parametrize("name", SEVERAL)
def test_several_volumes_are_refused_by_name(tmp_path: Path, name: str) -> None:
    refused_for(dicom.save_folder(kind(name)[0], tmp_path / "s"), *SEVERAL[name][1])


@pytest.mark.parametrize("name", DESCRIBED)
def test_stored_values_and_geometry_mean_what_the_attributes_say(tmp_path: Path, name: str) -> None:
    datasets, right = kind(name)
    assert fault(dicom.save_folder(datasets, tmp_path / "s"), right) == ""


@pytest.mark.parametrize("name", NAMED)
def test_what_is_no_upright_volume_of_numbers_is_refused_by_name(tmp_path: Path, name: str) -> None:
    refused_for(dicom.save_folder(kind(name)[0], tmp_path / "s"), *NAMED[name][1])


SYNTAXES = {
    "implicit": lambda ds: ds,
    "big endian": lambda ds: ds,
    "deflated": lambda ds: setattr(ds.file_meta, "TransferSyntaxUID", DeflatedExplicitVRLittleEndian),
    "RLE": lambda ds: ds.compress(RLELossless),
}


@pytest.mark.parametrize("name", SYNTAXES)
def test_transfer_syntaxes_give_equal_voxels(tmp_path: Path, name: str) -> None:
    datasets = dicom.slices(VOLUME, syntax={"implicit": "implicit", "big endian": "big"}.get(name, "explicit"))
    for ds in datasets:
        SYNTAXES[name](ds)
    assert fault(dicom.save_folder(datasets, tmp_path / "s"), Right((VOLUME,), whole=True)) == ""


def scattered(folder: Path, place: Callable[[int], str]) -> Path:
    """The slices of a volume, each at a path below the folder."""
    for k, ds in enumerate(dicom.slices(VOLUME)):
        path = folder / place(k)
        path.parent.mkdir(parents=True, exist_ok=True)
        dicom.save(ds, path)
    return folder


PLACES: dict[str, Callable[[int], str]] = {
    "no suffix": lambda k: f"IM{k}",
    "UIDs as names": lambda k: f"1.2.840.{k}",
    "sub-folders": lambda k: f"{k % 2}/{k}.dcm",
    "deep": lambda k: f"a/b/c/{k}.dcm",
    "not UTF-8": lambda k: os.fsdecode(b"\xe9%d.dcm" % k),
}


@pytest.mark.parametrize("name", PLACES)
def test_one_series_is_one_volume_wherever_its_files_are(tmp_path: Path, name: str) -> None:
    assert fault(scattered(tmp_path / "s", PLACES[name]), Right((VOLUME,), whole=True)) == ""


def test_a_linked_sub_folder_is_read(tmp_path: Path) -> None:
    elsewhere = scattered(tmp_path / "elsewhere", lambda k: f"{k}.dcm")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "link").symlink_to(elsewhere, target_is_directory=True)
    assert fault(tmp_path / "s", Right((VOLUME,), whole=True)) == ""


def frame_groups(edit: Callable[[int, Dataset], None]) -> Dataset:
    ds = dicom.frames(VOLUME)
    for k, groups in enumerate(ds.PerFrameFunctionalGroupsSequence):
        edit(k, groups)
    return ds


def _frame_moved(k: int, groups: Dataset) -> None:
    place = groups.PlanePositionSequence[0].ImagePositionPatient
    place[1] = float(place[1]) + k


FRAMES: dict[str, tuple[Callable[[int, Dataset], None], tuple[str, ...]]] = {
    "two stacks": (lambda k, one: setattr(one.FrameContentSequence[0], "StackID", str(k % 2)), ("stack",)),
    "three orientations": (
        lambda k, one: setattr(
            one,
            "PlaneOrientationSequence",
            [dicom.item(ImageOrientationPatient=["1", "0", "0", "0", "1" if k < 2 else "0", "0" if k < 2 else "1"])],
        ),
        ("orientation",),
    ),
    "same place": (
        lambda k, one: setattr(one.PlanePositionSequence[0], "ImagePositionPatient", ["0", "0", str(k // 2)]),
        ("position", "place", "4-d"),
    ),
}


@pytest.mark.parametrize("name", FRAMES)
def test_frames_that_are_no_upright_stack_are_refused_by_name(tmp_path: Path, name: str) -> None:
    edit, words = FRAMES[name]
    ds = frame_groups(edit)
    if name == "three orientations":
        del ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    refused_for(dicom.save(ds, tmp_path / "a.dcm"), *words)


def test_frames_with_a_tilt_are_refused_or_on_their_sheared_grid(tmp_path: Path) -> None:
    ds = frame_groups(_frame_moved)
    assert fault(dicom.save(ds, tmp_path / "a.dcm"), enhanced_meaning(ds)) == ""


def test_frames_against_the_normal_and_slopes_of_their_own(tmp_path: Path) -> None:
    slopes = [0.5, 1.0, 1.5, 2.0, 2.5]
    turned = Volume(VOLUME.voxels[:, :, ::-1], VOLUME.affine)
    ds = dicom.frames(turned, slopes[::-1])
    places = [one.PlanePositionSequence for one in ds.PerFrameFunctionalGroupsSequence]
    for groups, place in zip(ds.PerFrameFunctionalGroupsSequence, places[::-1], strict=True):
        groups.PlanePositionSequence = place
    scan = read_scan(dicom.save(ds, tmp_path / "a.dcm"))
    truth = Volume(VOLUME.voxels * np.array(slopes), VOLUME.affine)
    assert difference(scan.channels[0], scan.geometry.affine, truth) == ""
