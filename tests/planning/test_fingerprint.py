"""The fingerprint against numbers worked out by hand, and the datasets that it rejects."""

import dataclasses
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest

from volseg.data.cases.dataset import Dataset, TrainingCase, open_dataset
from volseg.data.cases.labels import LabelSet
from volseg.data.cases.phantom import write_phantoms
from volseg.data.io import reading
from volseg.errors import DatasetError, InputError, Problem
from volseg.planning import fingerprint
from volseg.planning.fingerprint import take_fingerprint
from volseg.planning.summary import summary

# I runs to L, J to S, K to P: R, A, S are the stored axes 0, 2, 1.
AFFINE = np.array([[-2.0, 0, 0, 0], [0, 0, -0.5, 0], [0, 3.0, 0, 0], [0, 0, 0, 1]])
LABELS = LabelSet({"front": 1, "back": 3})


def write_case(folder: Path, name: str, image: np.ndarray, label: np.ndarray, label_affine=AFFINE) -> TrainingCase:
    paths = folder / f"{name}.nii.gz", folder / f"{name}_label.nii.gz"
    for path, array, affine in zip(paths, (image, label.astype(np.uint8)), (AFFINE, label_affine), strict=True):
        stored = nibabel.Nifti1Image(array, affine)
        stored.header.set_xyzt_units("mm")
        nibabel.save(stored, path)
    return TrainingCase(name, (paths[0],), paths[1])


def dataset_of(*cases: TrainingCase, labels: LabelSet = LABELS) -> Dataset:
    return Dataset("tiny", Path(), ("MRI",), labels, cases)


def tiny(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    image = np.random.default_rng(seed).integers(0, 1000, size=(6, 8, 10)).astype(np.int16)
    label = np.zeros((6, 8, 10), dtype=np.uint8)
    label[2:4, 3, 1:3] = 1  # 4 voxels at K 1.5: low K is anterior
    label[2:4, 3, 5:9] = 3  # 8 voxels at K 6.5
    return image, label


def test_measures_of_a_case(tmp_path):
    image, label = tiny()
    fingerprint = take_fingerprint(dataset_of(write_case(tmp_path, "a", image, label)))
    (case,) = fingerprint.cases
    assert case.shape == (6, 10, 8)
    assert case.spacing_mm == pytest.approx((2.0, 0.5, 3.0))
    assert case.volumes_ml == pytest.approx({"front": 4 * 3 / 1000, "back": 8 * 3 / 1000})
    assert case.means == pytest.approx((image.mean(),))
    # Centre of both: K (4 * 1.5 + 8 * 6.5) / 12 = 4.833; their box has 8 voxels along K, which runs to posterior.
    assert case.offsets["front"] == pytest.approx((0, (4.8333 - 1.5) / 8, 0), abs=1e-4)
    assert case.offsets["back"] == pytest.approx((0, (4.8333 - 6.5) / 8, 0), abs=1e-4)
    (channel,) = fingerprint.channels
    inside = image[label > 0]
    assert channel.name == "MRI"
    assert channel.percentiles == pytest.approx(tuple(np.percentile(inside, [0.5, 99.5])))
    assert (channel.mean, channel.std) == pytest.approx((inside.mean(), inside.std()))


def test_the_contrast_of_a_label_is_against_all_other_voxels(tmp_path):
    image, label = tiny()
    image[label == 3] += 2000
    first, second = write_case(tmp_path, "a", image, label), write_case(tmp_path, "b", 5 - 2 * image, label)
    case = TrainingCase("a", (*first.images, *second.images), first.label)
    (found,) = take_fingerprint(Dataset("two", tmp_path, ("T1", "T2"), LABELS, (case,))).cases

    def above(inside):
        return (image[inside].mean() - image[~inside].mean()) / image.std()

    back = above(label == 3)
    assert back > 2
    assert found.contrasts["back"] == pytest.approx((back, -back))
    assert found.contrasts["front"][0] == pytest.approx(
        (image[label == 1].mean() - image[label != 1].mean()) / image.std()
    )
    regions = LabelSet({"both": 1, "back": 3}, {"both": (1, 3), "back": (3,)})
    (found,) = take_fingerprint(dataset_of(first, labels=regions)).cases
    assert found.contrasts["both"] == pytest.approx(
        ((image[label > 0].mean() - image[label == 0].mean()) / image.std(),)
    )


def test_ignored_voxels_are_excluded_from_the_contrast(tmp_path):
    image, label = tiny()
    label[4:] = 4
    labels = LabelSet(LABELS.values, ignore=4)
    (found,) = take_fingerprint(dataset_of(write_case(tmp_path, "a", image, label), labels=labels)).cases
    rest = image[(label != 1) & (label != 4)]
    assert found.contrasts["front"] == pytest.approx(((image[label == 1].mean() - rest.mean()) / image.std(),))


def test_a_label_everywhere_or_nowhere_has_no_contrast(tmp_path):
    image = tiny()[0]
    (found,) = take_fingerprint(dataset_of(write_case(tmp_path, "a", image, np.ones(image.shape)))).cases
    assert found.contrasts == {}


class TestCache:
    @pytest.fixture
    def dataset(self, tmp_path):
        image, label = tiny()
        return dataset_of(write_case(tmp_path, "a", image, label), write_case(tmp_path, "b", image // 2, label == 1))

    @pytest.fixture
    def reads(self, monkeypatch):
        """The names of the files that are read as scans."""
        names, read = [], fingerprint.read_channels

        def noted(paths, channels):
            names.append(paths[0].name)
            return read(paths, channels)

        monkeypatch.setattr(fingerprint, "read_channels", noted)
        return names

    def test_a_second_call_gives_the_same_and_reads_no_scan(self, dataset, reads, tmp_path):
        plain = take_fingerprint(dataset)
        first = take_fingerprint(dataset, tmp_path / "cache")
        assert sorted(reads) == ["a.nii.gz", "a.nii.gz", "b.nii.gz", "b.nii.gz"]
        again = take_fingerprint(dataset, tmp_path / "cache")
        assert len(reads) == 4
        for one in (first, again):
            assert one.channels == plain.channels
            for case, expected in zip(one.cases, plain.cases, strict=True):
                facts = dataclasses.asdict(case), dataclasses.asdict(expected)
                np.testing.assert_array_equal(*(fact.pop("samples") for fact in facts))
                assert facts[0] == facts[1]
        assert summary_text(again) == summary_text(plain)

    def test_changed_files_are_read_again(self, dataset, reads, tmp_path):
        take_fingerprint(dataset, tmp_path / "cache")
        reads.clear()
        write_case(tmp_path, "b", tiny(3)[0], tiny()[1])
        changed = take_fingerprint(dataset, tmp_path / "cache")
        assert reads == ["b.nii.gz"]
        assert changed.cases[1].volumes_ml["back"] > 0
        take_fingerprint(dataclasses.replace(dataset, labels=LabelSet({"front": 1, "rear": 3})), tmp_path / "cache")
        assert len(reads) == 3

    def test_corrupt_measurements_are_measured_again(self, dataset, reads, tmp_path):
        first = take_fingerprint(dataset, tmp_path / "cache")
        one, two = sorted((tmp_path / "cache").iterdir())
        one.write_bytes(one.read_bytes()[:200])
        two.write_bytes(b"")
        reads.clear()
        again = take_fingerprint(dataset, tmp_path / "cache")
        assert sorted(reads) == ["a.nii.gz", "b.nii.gz"]
        assert summary_text(again) == summary_text(first)
        take_fingerprint(dataset, tmp_path / "cache")
        assert len(reads) == 2

    def test_a_case_whose_cache_file_cannot_be_named_is_reported(self, dataset, tmp_path, monkeypatch):
        def unreadable(folder, case, facts):
            raise InputError("Case b: could not read x. Put the file back.")

        take_fingerprint(dataset, tmp_path / "cache")
        monkeypatch.setattr(fingerprint, "cache_stem", unreadable)
        with pytest.raises(DatasetError, match="could not read x") as caught:
            take_fingerprint(dataset, tmp_path / "cache")
        assert [row.case for row in caught.value.problems] == ["a", "b"]

    def test_a_name_of_any_length_has_a_cache_file(self, dataset, reads, tmp_path):
        case = dataclasses.replace(dataset.cases[0], name="a" * 300)
        for _ in range(2):
            take_fingerprint(dataset_of(case), tmp_path / "cache")
        assert len(reads) == 1

    def test_problems_are_not_cached_and_duplicates_are_found_among_cached_cases(self, dataset, tmp_path):
        take_fingerprint(dataset, tmp_path / "cache")
        twin = write_case(tmp_path, "c", tiny()[0], tiny()[1])
        gone = TrainingCase("gone", (tmp_path / "gone.nii.gz",), tmp_path / "gone_label.nii.gz")
        for _ in range(2):
            with pytest.raises(DatasetError) as caught:
                take_fingerprint(dataset_of(*dataset.cases, twin, gone), tmp_path / "cache")
            found = [(row.case, row.problem) for row in caught.value.problems]
            assert found == [("gone", "missing file"), ("gone", "missing file"), ("c", "duplicate")]


def summary_text(found):
    return "\n".join(summary(found))


def test_the_summary_gives_sizes_volumes_and_contrasts(tmp_path):
    image, label = tiny()
    small = write_case(tmp_path, "b", image[:4], label[:4] * 0 + (np.arange(4) == 1)[:, None, None])
    found = take_fingerprint(dataset_of(write_case(tmp_path, "a", image, label), small))
    text = summary_text(found)
    assert "2 cases, along R x A x S:" in text
    assert "voxels      median 5 x 10 x 8, from 4 x 10 x 8 to 6 x 10 x 8" in text
    assert "spacing mm  median 2 x 0.5 x 3, from 2 x 0.5 x 3 to 2 x 0.5 x 3" in text
    contrast = (image[label == 3].mean() - image[label != 3].mean()) / image.std()
    assert (
        "label back: in 1 of 2 cases, median 0.024 mL, 1.7 % of the scan, "
        f"contrast to the rest of the scan {contrast:+.2f} standard deviations in MRI" in text
    )
    assert "label front: in 2 of 2 cases, median 0.126 mL" in text
    (alone,) = dataclasses.replace(found, cases=found.cases[1:]).cases
    assert "label back: in no case" in summary_text(dataclasses.replace(found, cases=(alone,)))


def test_a_region_is_measured_with_all_its_parts(tmp_path):
    image, label = tiny()
    regions = LabelSet({"both": 1, "back": 3}, {"both": (1, 3), "back": (3,)})
    (case,) = take_fingerprint(dataset_of(write_case(tmp_path, "a", image, label), labels=regions)).cases
    assert case.volumes_ml == pytest.approx({"both": 12 * 3 / 1000, "back": 8 * 3 / 1000})
    assert case.offsets["both"] == pytest.approx((0, 0, 0), abs=1e-9)
    assert case.offsets["back"] == pytest.approx((0, (4.8333 - 6.5) / 8, 0), abs=1e-4)


def test_ignored_voxels_are_excluded_from_all_measurements(tmp_path):
    image, label = tiny()
    image[0], partly = 30_000, label.copy()
    partly[0] = 4
    whole, known = (
        take_fingerprint(dataset_of(write_case(tmp_path, "a", image, one), labels=LabelSet(LABELS.values, ignore=4)))
        for one in (label, partly)
    )
    assert known.cases[0].volumes_ml == whole.cases[0].volumes_ml
    assert known.cases[0].offsets == whole.cases[0].offsets
    assert known.channels == whole.channels
    with pytest.raises(InputError, match=r"unknown label values \[4\]"):
        take_fingerprint(dataset_of(write_case(tmp_path, "a", image, partly)))


def test_ranges_over_cases_and_a_label_that_is_absent(tmp_path):
    image, label = tiny()
    cases = write_case(tmp_path, "a", image, label), write_case(tmp_path, "b", image // 2, np.where(label == 1, 1, 0))
    fingerprint = take_fingerprint(dataset_of(*cases))
    assert fingerprint.volume_ml_range("front") == pytest.approx((0.012, 0.012))
    assert fingerprint.volume_ml_range("back") == pytest.approx((0.0, 0.024))
    assert "back" not in fingerprint.cases[1].offsets
    assert fingerprint.channels[0].mean_range == pytest.approx(((image // 2).mean(), image.mean()))


def test_a_large_foreground_is_sampled_the_same_each_time(tmp_path):
    image = np.random.default_rng(1).integers(0, 1000, size=(30, 30, 30)).astype(np.int16)
    dataset = dataset_of(write_case(tmp_path, "a", image, np.ones(image.shape)))
    first, again = take_fingerprint(dataset), take_fingerprint(dataset)
    assert first.cases[0].samples.shape == (1, 10_000)
    np.testing.assert_array_equal(first.cases[0].samples, again.cases[0].samples)
    assert first.channels[0].mean == pytest.approx(image.mean(), abs=10)


def test_several_channels_in_files_of_their_own(tmp_path):
    image, label = tiny()
    first, second = write_case(tmp_path, "a", image, label), write_case(tmp_path, "b", 2 * image, label)
    case = TrainingCase("a", (*first.images, *second.images), first.label)
    fingerprint = take_fingerprint(Dataset("two", tmp_path, ("T1", "T2"), LABELS, (case,)))
    assert fingerprint.channels[1].mean == pytest.approx(2 * fingerprint.channels[0].mean)


def test_all_problems_are_reported_at_once(tmp_path):
    image, label = tiny()
    holed = image.astype(np.float32)
    holed[0, 0, 0] = np.nan
    moved = AFFINE + np.array([[0, 0, 0, 5.0]] + [[0] * 4] * 3)
    dataset = dataset_of(
        write_case(tmp_path, "fine", image, label),
        write_case(tmp_path, "holed", holed, label),
        write_case(tmp_path, "moved", image, label, moved),
        write_case(tmp_path, "strange", image, label * 2),
        TrainingCase("gone", (tmp_path / "gone.nii.gz",), tmp_path / "gone_label.nii.gz"),
    )
    with pytest.raises(DatasetError) as caught:
        take_fingerprint(dataset)
    rows = [(row.case, row.problem) for row in caught.value.problems]
    assert rows == [
        ("holed", "not finite"),
        ("moved", "geometry differs"),
        ("strange", "unknown labels"),
        ("gone", "missing file"),
        ("gone", "missing file"),
        ("moved", "duplicate"),
        ("strange", "duplicate"),
    ]
    lines = str(caught.value).splitlines()
    assert lines[0] == "Dataset tiny has 7 problems and cannot be used for training:"
    assert lines[1].startswith("  holed: not finite: ")
    assert lines[1].endswith("; replace them, for example by 0.")


def test_only_thirty_problems_are_listed(tmp_path):
    gone = [TrainingCase(f"{i}", (tmp_path / "gone.nii",), tmp_path / "gone.nii") for i in range(32)]
    with pytest.raises(DatasetError, match=r"has 32 problems(?s:.*)and 2 more$") as caught:
        take_fingerprint(dataset_of(*gone))
    assert len(str(caught.value).splitlines()) == 32
    assert len(caught.value.problems) == 32


def test_problems_of_the_folder_come_first(tmp_path):
    known = Problem("a", "same name", "it is there twice", "rename one of them")
    case = write_case(tmp_path, "a", *tiny())
    with pytest.raises(DatasetError) as caught:
        take_fingerprint(dataclasses.replace(dataset_of(case), problems=(known,)))
    assert caught.value.problems == (known,)


def test_equal_scans_are_found_whatever_way_they_are_stored(tmp_path):
    image, label = tiny()
    cases = [
        write_case(tmp_path, "a", image, label),
        write_case(tmp_path, "b", np.ascontiguousarray(image, np.float64), label),
        write_case(tmp_path, "c", image[::-1], label),
        write_case(tmp_path, "d", image, label),
    ]
    with pytest.raises(DatasetError) as caught:
        take_fingerprint(dataset_of(*cases))
    assert [(row.case, row.found) for row in caught.value.problems] == [
        ("b", "it has the same voxels as a"),
        ("d", "it has the same voxels as a"),
    ]


def test_labels_that_are_all_empty(tmp_path):
    image, label = tiny()
    with pytest.raises(DatasetError, match="all 1 cases contain only background"):
        take_fingerprint(dataset_of(write_case(tmp_path, "a", image, 0 * label)))


def test_empty_cases_among_others_are_logged(tmp_path, caplog):
    image, label = tiny()
    cases = write_case(tmp_path, "a", image, label), write_case(tmp_path, "b", image + 1, 0 * label)
    assert take_fingerprint(dataset_of(*cases)).cases[1].offsets == {}
    assert caplog.messages == ["1 of 2 cases have no foreground voxel: b."]


UNSTATED = "the header has no spatial unit"
NO_UNIT = "The header has no spatial unit; millimetres are assumed."


def without_unit(monkeypatch, *names):
    """Let files whose name starts so be read as if they did not state their unit."""
    read = reading.read_stored

    def as_unstated(path, *arguments):
        stored = read(path, *arguments)._replace(unstated="", warnings=[])
        if not path.name.startswith(names):
            return stored
        return stored._replace(unstated=UNSTATED, warnings=[NO_UNIT])

    monkeypatch.setattr(reading, "read_stored", as_unstated)


def test_warnings_of_reading_are_shown_once_with_their_cases_also_from_the_cache(tmp_path, caplog, monkeypatch):
    without_unit(monkeypatch, "a", "b", "c_label")
    dataset = dataset_of(*(write_case(tmp_path, name, *tiny(seed)) for seed, name in enumerate("abc")))
    expected = [f"{NO_UNIT} (2 of 3 cases: a, b)", f"Label image: {NO_UNIT} (1 of 3 cases: c)"]
    for _ in range(2):
        caplog.clear()
        found = take_fingerprint(dataset, tmp_path / "cache")
        assert caplog.messages == expected
        assert [case.unstated for case in found.cases] == [UNSTATED, UNSTATED, ""]
        assert list(summary(found))[-2:] == [f"warning: {one}" for one in expected]


def test_volume_ranges_are_of_the_cases_that_state_their_size(tmp_path, monkeypatch):
    image, label = tiny()
    larger = label.copy()
    larger[2:4, 3:5, 1:3] = 1
    cases = [write_case(tmp_path, "a", image, label), write_case(tmp_path, "b", image + 1, larger)]
    without_unit(monkeypatch, "b")
    found = take_fingerprint(dataset_of(*cases))
    assert found.volume_ml_range("front") == pytest.approx((4 * 3 / 1000, 4 * 3 / 1000))
    without_unit(monkeypatch, "a", "b")
    found = take_fingerprint(dataset_of(*cases))
    assert found.volume_ml_range("front") is None
    assert "volume unknown" in "\n".join(summary(found))


def test_cached_measurements_are_read_by_one_thread_at_a_time(tmp_path, monkeypatch):
    """Python 3.11's ast, which NumPy reads headers with, fails at random in two threads at once."""
    at_once, most = [], []
    load = np.load

    def watched(*arguments, **options):
        at_once.append(1)
        most.append(len(at_once))
        time.sleep(0.01)
        try:
            return load(*arguments, **options)
        finally:
            at_once.pop()

    write_phantoms(tmp_path / "data", 6, 1, "mr")
    dataset = open_dataset(tmp_path / "data")
    first = take_fingerprint(dataset, tmp_path / "cache")
    monkeypatch.setattr(np, "load", watched)
    again = take_fingerprint(dataset, tmp_path / "cache")
    assert [case.name for case in again.cases] == [case.name for case in first.cases]
    assert len(most) == 6
    assert max(most) == 1
