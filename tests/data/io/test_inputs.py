"""The cases found among inputs, the paths of their results, and errors before any computation."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from volseg.data.io.formats import SUFFIXES
from volseg.data.io.inputs import Case, find_cases, output_paths, plan_outputs
from volseg.errors import InputError, UsageError

ONE = ("image",)
TWO = ("T1", "T2")


def make(root: Path, *names: str) -> Path:
    """Make files below `root` that are empty, or begin as DICOM where named IM or 1.2, and folders for a last '/'."""
    for name in names:
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(bytes(128) + b"DICM" if path.name.startswith(("IM", "1.2.")) else b"")
    return root


def brief(cases: list[Case], root: Path) -> list[tuple[str, ...]]:
    """Name and paths of each case, below `root`."""
    return [(case.name, *(str(path.relative_to(root)) for path in case.paths)) for case in cases]


@pytest.mark.parametrize(
    ("scan", "result"),
    [
        ("scan.nii", "scan.nii"),
        ("scan.nii.gz", "scan.nii.gz"),
        ("scan.mgz", "scan.mgz"),
        ("scan.mgh", "scan.mgh"),
        ("scan.nrrd", "scan.nrrd"),
        ("scan.nhdr", "scan.nrrd"),
        ("scan.mha", "scan.mha"),
        ("scan.mhd", "scan.mha"),
        ("a.b.c.nii.gz", "a.b.c.nii.gz"),
        ("case_0000.nii.gz", "case.nii.gz"),
        ("series.zip", "series.nii.gz"),
        ("1.2.3.dcm", "1.2.3.nii.gz"),
        ("enhanced.DCM", "enhanced.nii.gz"),
    ],
)
def test_a_scan_file_and_its_result(tmp_path: Path, scan: str, result: str) -> None:
    make(tmp_path, scan)
    cases = find_cases([tmp_path / scan], ONE)
    assert [case.paths for case in cases] == [(tmp_path / scan,)]
    assert output_paths(cases, tmp_path / "out") == [tmp_path / "out" / result]


@pytest.mark.parametrize(
    "files",
    [
        ["1.dcm", "2.dcm"],
        ["IM0001", "IM0002", "DICOMDIR"],
        ["slice.ima", "notes.txt", "result.json"],
        ["1.2.840.113", "1.2.840.114"],
        ["only.dcm", "empty/"],
        ["only.dcm", "README"],
    ],
)
def test_a_folder_without_other_formats_is_a_series(tmp_path: Path, files: list[str]) -> None:
    series = make(tmp_path / "MR.T1", *files)
    assert find_cases([series], ONE) == [Case("MR.T1", (series,), ".nii.gz")]


@pytest.mark.parametrize("name", ["README", "Makefile", "log.1"])
@pytest.mark.parametrize("content", [b"", b"Notes on the scans beside this folder.\n" * 9])
def test_a_folder_of_notes_is_not_a_series(tmp_path: Path, name: str, content: bytes) -> None:
    folder = make(tmp_path / "scans", "a.nii.gz", f"notes/{name}")
    (folder / "notes" / name).write_bytes(content)
    assert brief(find_cases([folder], ONE), folder) == [("a", "a.nii.gz")]
    with pytest.raises(InputError) as caught:
        find_cases([folder / "notes"], ONE)
    assert str(caught.value) == (
        f"{folder / 'notes'} holds no scan. Supported: {', '.join(SUFFIXES)}, .zip or folder of a DICOM series."
    )


def test_dicom_without_preamble_is_a_series(tmp_path: Path) -> None:
    (make(tmp_path / "series", "a/") / "data").write_bytes(b"\x08\0\5\0CS\x0a\0ISO_IR 100")
    assert find_cases([tmp_path / "series"], ONE) == [Case("series", (tmp_path / "series",), ".nii.gz")]


def test_a_series_in_the_current_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make(tmp_path / "patient", "1.dcm"))
    assert find_cases([Path(".")], ONE) == [Case("patient", (Path("."),), ".nii.gz")]


def test_a_folder_of_scans(tmp_path: Path) -> None:
    folder = make(
        tmp_path / "scans", "b.mha", "a.nii.gz", "c.zip", "series/1.dcm", "one.dcm", "c.json", "d.png", ".e.nii.gz",
        "notes.txt", "deeper/f.nii.gz", ".hidden/1.dcm", "empty/",
    )  # fmt: skip
    assert brief(find_cases([folder], ONE), folder) == [
        ("a", "a.nii.gz"),
        ("b", "b.mha"),
        ("c", "c.zip"),
        ("one", "one.dcm"),
        ("series", "series"),
    ]


def test_a_folder_of_series(tmp_path: Path) -> None:
    study = make(tmp_path / "study", "T2/1.dcm", "T1/1.dcm")
    assert brief(find_cases([study], ONE), study) == [("T1", "T1"), ("T2", "T2")]


def test_several_inputs_keep_their_order(tmp_path: Path) -> None:
    make(tmp_path, "z/scan.nii", "m/b.nii", "m/a.nii", "series/1.dcm")
    cases = find_cases([tmp_path / "z" / "scan.nii", tmp_path / "m", tmp_path / "series"], ONE)
    assert brief(cases, tmp_path) == [("scan", "z/scan.nii"), ("a", "m/a.nii"), ("b", "m/b.nii"), ("series", "series")]


@pytest.mark.parametrize("again", ["p/s.nii.gz", "p", "p/../p", "p/series", "elsewhere/../p/s.nii.gz"])
def test_a_scan_given_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: str) -> None:
    monkeypatch.chdir(make(tmp_path, "p/s.nii.gz", "p/series/1.dcm", "elsewhere/"))
    given = (Path("p/s.nii.gz"), Path("p/series"), tmp_path / again)
    assert find_cases(given, ONE) == [Case("s", given[:1], ".nii.gz"), Case("series", given[1:2], ".nii.gz")]


def test_a_channel_given_twice_counts_once(tmp_path: Path) -> None:
    make(tmp_path, "x_0000.nii", "x_0001.nii")
    assert brief(find_cases([tmp_path / "x_0001.nii", tmp_path], TWO), tmp_path) == [("x", "x_0000.nii", "x_0001.nii")]


@pytest.mark.parametrize(
    ("channels", "files", "expected"),
    [
        (ONE, ["x_0000.nii.gz", "y_0000.mha"], [("x", "x_0000.nii.gz"), ("y", "y_0000.mha")]),
        (ONE, ["x_0000.nii.gz", "y.nii.gz"], [("x_0000", "x_0000.nii.gz"), ("y", "y.nii.gz")]),
        (ONE, ["x_0001.nii.gz"], [("x_0001", "x_0001.nii.gz")]),
        (ONE, ["x_0000.nii", "x_0001.nii"], [("x_0000", "x_0000.nii"), ("x_0001", "x_0001.nii")]),
        (ONE, ["x_0000.nii", "x_0000.mha"], [("x_0000", "x_0000.mha"), ("x_0000", "x_0000.nii")]),
        (TWO, ["x_0001.nii", "x_0000.nii"], [("x", "x_0000.nii", "x_0001.nii")]),
        (TWO, ["x_0000/1.dcm", "x_0001/1.dcm"], [("x", "x_0000", "x_0001")]),
        (TWO, ["x_0000.nii", "x_0001.nii", "x_0002.nii"], [(f"x_000{i}", f"x_000{i}.nii") for i in range(3)]),
        (TWO, ["x_0000.nii", "x_0001.nii", "y.nii"], [(n, f"{n}.nii") for n in ("x_0000", "x_0001", "y")]),
        (TWO, ["x_0000.nii", "x_0001.nii", "y_0000.nii"], [(n, f"{n}.nii") for n in ("x_0000", "x_0001", "y_0000")]),
        (TWO, ["four_d.nii.gz"], [("four_d", "four_d.nii.gz")]),
        (TWO, ["four_d_0000.nii.gz"], [("four_d_0000", "four_d_0000.nii.gz")]),
    ],
)
@pytest.mark.parametrize("as_folder", [True, False])
def test_nnunet_channels(
    tmp_path: Path, channels: tuple[str, ...], files: list[str], expected: list[tuple[str, ...]], as_folder: bool
) -> None:
    folder = make(tmp_path / "images", *files)
    inputs = [folder] if as_folder else sorted(folder.iterdir())
    assert brief(find_cases(inputs, channels), folder) == expected


def test_channels_are_grouped_within_one_folder(tmp_path: Path) -> None:
    make(tmp_path, "a/x_0000.nii", "b/x_0001.nii")
    cases = find_cases([tmp_path / "a" / "x_0000.nii", tmp_path / "b" / "x_0001.nii"], TWO)
    assert [case.name for case in cases] == ["x_0000", "x_0001"]


def test_an_incomplete_set_of_channels_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "x_0000.nii", "x_0001.nii", "y_0000.nii")
    with caplog.at_level(logging.WARNING):
        find_cases([tmp_path], TWO)
    assert caplog.messages == [
        f"Not every case in {tmp_path} has exactly the files _0000 to _0001, "
        "so each file is treated as a separate case."
    ]


def test_named_channels_are_in_the_order_of_the_model(tmp_path: Path) -> None:
    make(tmp_path, "t1.nhdr", "t2/1.dcm")
    cases = find_cases([], TWO, {"T2": tmp_path / "t2", "T1": tmp_path / "t1.nhdr"})
    assert cases == [Case("t1", (tmp_path / "t1.nhdr", tmp_path / "t2"), ".nrrd")]


@pytest.mark.parametrize(
    ("named", "kind", "message"),
    [
        ({"T1": "a.nii"}, UsageError, "channels are T1, T2, found --channel T1. Give each once."),
        ({"T1": "a.nii", "T2": "a.nii", "PD": "a.nii"}, UsageError, "found --channel T1, T2, PD"),
        ({"T1": "a.nii", "T2": "."}, UsageError, "--channel T2=.* is a folder of scans"),
        ({"T1": "a.nii", "T2": "b.nii"}, InputError, "b.nii does not exist"),
    ],
)
def test_named_channels_rejected(tmp_path: Path, named: dict[str, str], kind: type[Exception], message: str) -> None:
    make(tmp_path, "a.nii")
    with pytest.raises(kind, match=message):
        find_cases([], TWO, {channel: tmp_path / name for channel, name in named.items()})


def test_inputs_or_named_channels(tmp_path: Path) -> None:
    scan = make(tmp_path, "a.nii") / "a.nii"
    with pytest.raises(UsageError, match="found both"):
        find_cases([scan], TWO, {"T1": scan, "T2": scan})
    with pytest.raises(UsageError, match="Nothing to segment"):
        find_cases([], TWO)


@pytest.mark.parametrize(
    ("files", "given", "message"),
    [
        ([], "absent.nii", "absent.nii does not exist"),
        (["scan.jpg"], "scan.jpg", r"scan.jpg has no supported image format. Supported: .*\.nii\.gz.*\.zip"),
        (["empty/"], "empty", "empty holds no scan"),
        (["results/a.json", "results/a.png"], "results", "results holds no scan"),
        (["deep/er/a.nii.gz"], "deep", r"deep holds no scan itself; its sub-folders hold 1: er/a\.nii\.gz\. Give"),
        (
            ["mix/a.nii", "mix/1.dcm", "mix/2.dcm"],
            "mix",
            r"2 DICOM files next to other scans \(\.nii\)",
        ),
    ],
)
def test_inputs_that_are_not_scans(tmp_path: Path, files: list[str], given: str, message: str) -> None:
    make(tmp_path, *files)
    with pytest.raises(InputError, match=message):
        find_cases([tmp_path / given], ONE)


def test_a_name_that_is_too_long_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / f"{'x' * 300}.nii.gz"
    for arguments in (([path], ONE), ([], ONE, {"image": path})):
        with pytest.raises(InputError) as caught:
            find_cases(*arguments)
        assert str(caught.value) == (
            f"{path} cannot be read: File name too long; check its name, its permissions and its disk."
        )


def test_a_pipe_is_not_a_scan(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ff.nii.gz")
    with pytest.raises(InputError) as caught:
        find_cases([tmp_path / "ff.nii.gz"], ONE)
    assert str(caught.value) == (
        f"{tmp_path / 'ff.nii.gz'} is neither a file nor a folder. Give a scan or a folder of scans."
    )


@pytest.mark.parametrize(
    ("call", "closed", "given", "named"),
    [
        ("stat", "folder/a.nii", "folder/a.nii", "{}/folder/a.nii"),
        ("scandir", "folder", "folder", "{}/folder"),
        ("scandir", "folder", ".", "A file or folder in {}"),
    ],
)
def test_an_unreadable_folder_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, closed: str, given: str, named: str
) -> None:
    refused = make(tmp_path, "folder/a.nii", "b.nii") / closed
    original = getattr(os, call)

    def refuse(path: Any, **options: Any) -> Any:
        if str(path) == str(refused):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, **options)

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(InputError) as caught:
        find_cases([tmp_path / given], ONE)
    assert str(caught.value) == (
        f"{named.format(tmp_path)} cannot be read: Permission denied; check its name, its permissions and its disk."
    )


def test_one_case_may_name_its_result(tmp_path: Path) -> None:
    folder = make(tmp_path, "scans/a.mha", "b.nii", "labels.nii.gz/")
    for given in (folder / "scans", folder / "scans" / "a.mha"):
        cases = find_cases([given], ONE)
        assert output_paths(cases, folder / "seg.nii.gz") == [folder / "seg.nii.gz"]
        assert output_paths(cases, folder / "seg") == [folder / "seg" / "a.mha"]
        assert output_paths(cases, folder / "labels.nii.gz") == [folder / "labels.nii.gz" / "a.mha"]


def test_several_cases_need_a_folder(tmp_path: Path) -> None:
    cases = find_cases([make(tmp_path, "a.nii", "b.nii")], ONE)
    with pytest.raises(UsageError, match=r"out.nii.gz names one file, but there are 2 cases"):
        plan_outputs(cases, tmp_path / "out.nii.gz")


def test_a_file_is_not_an_output_folder(tmp_path: Path) -> None:
    cases = find_cases([make(tmp_path, "a.nii", "notes.txt") / "a.nii"], ONE)
    with pytest.raises(UsageError, match=r"notes\.txt is a file"):
        plan_outputs(cases, tmp_path / "notes.txt")


@pytest.mark.parametrize(
    "scans",
    [
        ["one/scan.nii.gz", "two/scan.nii.gz"],
        ["scan.nii", "scan.nii.gz"],
        ["scan.mhd", "scan.mha"],
        ["scan.nii", "scan.zip"],
        ["one/scan_0000.nii", "two/scan.nii"],
    ],
)
def test_two_inputs_with_one_output_name(tmp_path: Path, scans: list[str]) -> None:
    make(tmp_path, *scans)
    cases = find_cases([tmp_path / scan for scan in scans], ONE)
    with pytest.raises(
        UsageError, match=r"would be written to the same output 'scan'. .* different --output"
    ) as caught:
        plan_outputs(cases, tmp_path / "out", overwrite=True)
    assert all(str(tmp_path / scan) in str(caught.value) for scan in scans)


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_scan_is_never_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool) -> None:
    cases = find_cases([make(tmp_path, "a.nii", "b.nii")], ONE)
    with pytest.raises(UsageError, match=r"a.nii would overwrite the scan"):
        plan_outputs(cases, tmp_path, overwrite=overwrite)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"a.nii would overwrite the scan"):
        plan_outputs(find_cases([Path("a.nii")], ONE), tmp_path / "x" / ".." / "a.nii", overwrite=overwrite)


@pytest.mark.parametrize("output", ["series", "series/seg.nii.gz", "link"])
def test_no_result_is_written_into_a_series(tmp_path: Path, output: str) -> None:
    series = make(tmp_path, "series/1.dcm", "a.nii") / "series"
    (tmp_path / "link").symlink_to(series)
    cases = find_cases([series], ONE)
    (result,) = output_paths(cases, tmp_path / output)
    with pytest.raises(UsageError) as caught:
        plan_outputs(cases, tmp_path / output, overwrite=True)
    assert str(caught.value) == (
        f"The result {result} would lie in the DICOM series {series}. Choose an --output outside that folder."
    )
    assert plan_outputs(cases, tmp_path) == [(cases[0], tmp_path / "series.nii.gz")]


def test_a_series_with_results_in_a_subfolder_is_still_a_series(tmp_path: Path) -> None:
    series = make(tmp_path, "series/1.dcm") / "series"
    cases = find_cases([series], ONE)
    ((_, result),) = plan_outputs(cases, series / "results")
    make(series, "results/series.nii.gz")
    assert result == series / "results" / "series.nii.gz"
    assert find_cases([series], ONE) == cases


def test_existing_results(tmp_path: Path) -> None:
    cases = find_cases([make(tmp_path / "scans", "a.nii", "b.nii", "c.nii")], ONE)
    out = make(tmp_path / "out", "b.nii", "c.nii")
    pairs = [(case, out / f"{case.name}.nii") for case in cases]
    with pytest.raises(UsageError, match=r"2 of 3 results exist already, the first is .*b.nii. .*--overwrite.*--skip"):
        plan_outputs(cases, out)
    assert plan_outputs(cases, out, overwrite=True) == pairs
    assert plan_outputs(cases, out, skip_existing=True) == pairs[:1]
    assert plan_outputs(cases, tmp_path / "new") == [(case, tmp_path / "new" / path.name) for case, path in pairs]
    with pytest.raises(UsageError, match="contradict"):
        plan_outputs(cases, out, overwrite=True, skip_existing=True)


@pytest.mark.parametrize(
    ("output", "refused", "reason"),
    [
        ("a.nii/foo", "a.nii/foo/a.nii", "Not a directory"),
        ("a.nii/foo.nii", "a.nii/foo.nii", "Not a directory"),
        ("a.nii/foo/seg.nii.gz", "a.nii/foo/seg.nii.gz", "Not a directory"),
        (f"{'x' * 300}.nii", f"{'x' * 300}.nii", "File name too long. Its last part has 304 bytes"),
        (f"new/{'x' * 300}", f"new/{'x' * 300}/a.nii", "File name too long. Its last part has 5 bytes"),
        (f"{'x' * 251}.nii", f"{'x' * 251}.json", "File name too long. Its last part has 256 bytes"),
        (f"{'x' * 240}.nii", f"{'x' * 240}.probabilities.npy", "File name too long. Its last part has 258 bytes"),
    ],
)
def test_unwritable_outputs_are_rejected_before_any_computation(
    tmp_path: Path, output: str, refused: str, reason: str
) -> None:
    cases = find_cases([make(tmp_path, "a.nii") / "a.nii"], ONE)
    with pytest.raises(UsageError) as caught:
        plan_outputs(cases, tmp_path / output, also=(".probabilities.npy",))
    advice = "Choose a shorter name or path." if "long" in reason else "Choose another place."
    assert str(caught.value) == f"{tmp_path / refused} cannot be written: {reason}. {advice}"
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii"]


@pytest.mark.parametrize("output", ["seg.jpg", "seg.PNG", "seg.nii.gzip.gz", "seg.img", "seg.json"])
def test_the_name_of_another_file_is_not_taken_for_a_folder(tmp_path: Path, output: str) -> None:
    cases = find_cases([make(tmp_path, "a.nii") / "a.nii"], ONE)
    suffix = Path(output).suffix
    with pytest.raises(UsageError, match=rf"ends in {suffix}, but it is the label image or a folder\. Give one of "):
        plan_outputs(cases, tmp_path / output)
    (tmp_path / output).mkdir()
    assert [out for _, out in plan_outputs(cases, tmp_path / output)] == [tmp_path / output / "a.nii"]


def test_a_folder_of_finished_results_need_not_be_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = find_cases([make(tmp_path / "scans", "a.nii", "b.nii")], ONE)
    out = make(tmp_path / "out", "a.nii")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert plan_outputs(cases[:1], out, skip_existing=True) == []
    with pytest.raises(UsageError, match=r"/b\.nii cannot be written: Read-only file system\. Choose another place\."):
        plan_outputs(cases, out, skip_existing=True)


def test_results_of_several_files(tmp_path: Path) -> None:
    cases = find_cases([make(tmp_path / "scans", "a.nii", "b.nii", "c.nii", "d.nii")], ONE)
    out = make(tmp_path / "out", "b.nii", "c.nii", "c.probabilities.npy", "d.probabilities.npy")
    also = (".probabilities.npy",)
    pairs = [(case, out / f"{case.name}.nii") for case in cases]
    assert plan_outputs(cases, out, skip_existing=True, also=also) == [pairs[0], pairs[1], pairs[3]]
    assert plan_outputs(cases, out, skip_existing=True) == [pairs[0], pairs[3]]
    with pytest.raises(UsageError, match=r"3 of 4 results exist already"):
        plan_outputs(cases, out, also=also)
    with pytest.raises(UsageError, match=r"1 of 1 results exist already, the first is .*d\.probabilities\.npy"):
        plan_outputs(cases[3:], out, also=also)
    assert plan_outputs(cases[3:], out) == pairs[3:]
    assert plan_outputs(cases, out, overwrite=True, also=also) == pairs


@pytest.mark.needs_data
def test_real_scans(data_folder: Path) -> None:
    cases = find_cases([data_folder / "wild"], ONE)
    assert [path.name for path in output_paths(cases, Path("out"))] == [
        "FLAIR.nii.gz",
        "complex.nii.gz",
        "ct_3slice_series.nii.gz",
        "ct_torso_3mm.nii.gz",
        "enh.nii.gz",
        "mr_hippocampus_series.nii.gz",
        "mr_oblique_5mm_series.nii.gz",
        "pcasl.nii.gz",
        "shear.nii.gz",
        "wm.mgz",
    ]


@pytest.mark.parametrize("skip_existing", [False, True])
def test_a_sidecar_named_like_the_report_is_not_overwritten(tmp_path: Path, skip_existing: bool) -> None:
    cases = find_cases([make(tmp_path / "scans", "a.nii")], ONE)
    out = make(tmp_path / "out", "a.json")
    with pytest.raises(UsageError, match=r"would overwrite .*a\.json"):
        plan_outputs(cases, out, skip_existing=skip_existing)
    assert len(plan_outputs(cases, out, overwrite=True)) == 1


@pytest.mark.parametrize(("name", "instead"), [("seg.mhd", ".mha"), ("seg.nhdr", ".nrrd")])
def test_a_result_in_two_files_is_rejected_before_any_computation(tmp_path: Path, name: str, instead: str) -> None:
    cases = find_cases([make(tmp_path / "scans", "a.nii")], ONE)
    with pytest.raises(UsageError, match=f"Use {instead}"):
        plan_outputs(cases, tmp_path / name)
