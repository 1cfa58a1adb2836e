"""Archives and checkpoints from strangers: what they claim is looked at before they are unpacked or compared."""

import io
import json
import os
import shutil
import zipfile
import zlib

import pydicom
import pytest
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian

import volseg.api.convert
import volseg.api.importing  # noqa: F401 - like that above, loaded before the trials are forked
from tests.interop.folders import write_folder
from tests.interop.variants import VARIANTS
from tests.strangers.trials import check_refusal, command, run
from volseg.data.io.dicom import files
from volseg.errors import ResourceError


def zipped(path, members, method=zipfile.ZIP_STORED):
    """A .zip of files by name."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def refused(path, tmp_path):
    """The error of `volseg convert`, which leaves no temporary file."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    os.environ["TMPDIR"] = str(scratch)
    trial = run(command("convert", path, "--output", tmp_path / "out.nii.gz"), tmp_path)
    check_refusal(trial)
    assert list(scratch.iterdir()) == []
    return trial.error


@pytest.fixture(autouse=True)
def _same_environment(monkeypatch):
    monkeypatch.setenv("TMPDIR", os.environ.get("TMPDIR", "/tmp"))


def test_a_zip_of_too_many_files(tmp_path):
    path = zipped(tmp_path / "a.zip", ((f"{n}.dcm", b"") for n in range(files.MOST_MEMBERS + 1)))
    assert f"contains {files.MOST_MEMBERS + 1} files, at most {files.MOST_MEMBERS}" in refused(path, tmp_path)


def test_a_zip_of_many_empty_files(tmp_path):
    path = zipped(tmp_path / "a.zip", ((f"{n}.dcm", b"") for n in range(1500)))
    assert "contains 1500 files that are too small for DICOM" in refused(path, tmp_path)


def test_a_zip_with_a_list_of_files_that_takes_memory(tmp_path):
    names = (f"{n:05}{'x' * 60_000}" for n in range(160))
    assert "has a list of files of 9 MiB" in refused(zipped(tmp_path / "a.zip", ((n, b"") for n in names)), tmp_path)


def test_a_zip_bomb(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.dcm", "w") as one:
        for _ in range(600):
            one.write(bytes(2**20))
    assert "times its size (600 MiB), as no series does" in refused(tmp_path / "a.zip", tmp_path)


def test_a_zip_in_a_zip(tmp_path):
    assert "contains 1 .zip within the .zip" in refused(zipped(tmp_path / "a.zip", [("b.zip", b"x" * 200)]), tmp_path)


def test_names_in_a_zip_lead_nowhere(tmp_path):
    path = zipped(tmp_path / "a.zip", [("../../x.dcm", b"x" * 200), ("/tmp/y.dcm", b"x" * 200)])
    before = set(tmp_path.parent.iterdir())
    assert "contains no readable DICOM images" in refused(path, tmp_path)
    assert set(tmp_path.parent.iterdir()) == before


def test_a_zip_without_room_for_it(tmp_path, monkeypatch):
    path = zipped(tmp_path / "a.zip", [("a.dcm", bytes(2**20))])
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**20 - 1})())
    with pytest.raises(ResourceError, match="unpacks to 1 MiB, but the temporary folder"), files.files_of(path):
        pass


def deflated(size: int) -> bytes:
    """A DICOM image whose elements are deflated, with so many bytes of pixels, all 0."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, "1.2.3"
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = CTImageStorage, "1.2.3"
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, data, enforce_file_format=True)
    start = 144 + int.from_bytes(stream.getvalue()[140:144], "little")
    squeezed = zlib.compressobj(9, zlib.DEFLATED, -15)
    parts = [stream.getvalue()[:start], squeezed.compress(zlib.decompress(stream.getvalue()[start:], -15))]
    parts.append(squeezed.compress(b"\xe0\x7f\x10\0OW\0\0" + size.to_bytes(4, "little")))
    parts += [squeezed.compress(bytes(2**20)) for _ in range(size // 2**20)]
    return b"".join([*parts, squeezed.flush()])


def test_a_deflated_slice_that_takes_memory(tmp_path):
    (tmp_path / "a.dcm").write_bytes(deflated(2**29))
    assert "compressed to less than a 300th of its size" in refused(tmp_path / "a.dcm", tmp_path)


def test_a_deflated_slice_of_usual_size_is_inflated(tmp_path):
    (tmp_path / "a.dcm").write_bytes(deflated(2**20))
    assert "compressed" not in refused(tmp_path / "a.dcm", tmp_path)


def nested_tuple(levels: int):
    """A tuple that is small in a pickle and has 10 ** levels parts."""
    value = ("x",) * 10
    for _ in range(levels):
        value = (value,) * 10
    return value


def expanded(tensor):
    return torch.zeros(1).expand(10**12)


WEIGHTS = {
    "stride 0": expanded,
    "complex": lambda tensor: tensor.to(torch.complex64),
    "integer": lambda tensor: tensor.to(torch.int32),
    "bool": lambda tensor: tensor != 0,
    "sparse": lambda tensor: tensor.to_sparse(),
    "meta": lambda tensor: tensor.to("meta"),
    "no tensor": lambda tensor: "x",
    "another shape": lambda tensor: tensor[None],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained nnU-Net folder, small."""
    return write_folder(tmp_path_factory.mktemp("nnunet"), VARIANTS["windows"])


def altered(trained, tmp_path, change):
    """A copy of the folder with a changed checkpoint."""
    folder = shutil.copytree(trained, tmp_path / "folder")
    file = next(folder.glob("fold_*/*.pth"))
    document = torch.load(file, weights_only=True)
    change(document)
    torch.save(document, file)
    return folder


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_tensor_that_is_no_weight(trained, tmp_path, name):
    def change(document):
        weights = document["network_weights"]
        first = next(one for one in weights if one.endswith("conv.weight"))
        weights[first] = WEIGHTS[name](weights[first])
        weights[f"module.{first}"] = weights[first]

    folder = altered(trained, tmp_path, change)
    check_refusal(run(command("import-nnunet", folder, "--output", tmp_path / "m.safetensors"), tmp_path))
    assert not (tmp_path / "m.safetensors").exists()


CHANGES = {
    "names that multiply": lambda document: document["init_args"].update(configuration=nested_tuple(12)),
    "axes": lambda document: document.update(inference_allowed_mirroring_axes=[10**9] * 3),
    "many axes": lambda document: document.update(inference_allowed_mirroring_axes=[0, 1, 2, 0]),
    "a large pickle": lambda document: document.update(logging=list(range(2**20))),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_checkpoint_that_says_too_much(trained, tmp_path, name):
    folder = altered(trained, tmp_path, CHANGES[name])
    check_refusal(run(command("import-nnunet", folder, "--output", tmp_path / "m.safetensors"), tmp_path))


def test_a_storage_that_is_smaller_than_its_tensor(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "folder")
    file = next(folder.glob("fold_*/*.pth"))
    with zipfile.ZipFile(file) as archive:
        members = [(one, archive.read(one)) for one in archive.namelist()]
    largest = max(members, key=lambda one: len(one[1]) if "/data/" in one[0] else 0)[0]
    zipped(file, [(name, content[:8] if name == largest else content) for name, content in members])
    check_refusal(run(command("import-nnunet", folder, "--output", tmp_path / "m.safetensors"), tmp_path))


PLANS = {
    "stages": ("n_stages", 10**9),
    "features": ("features_per_stage", [10**6] * 4),
    "kernels": ("kernel_sizes", [[999] * 3] * 4),
    "strides": ("strides", [[1, 1, 1]] * 100_000),
    "blocks": ("n_conv_per_stage", [10**6] * 4),
    "decoder": ("n_conv_per_stage_decoder", 10**9),
    "norm": ("norm_op_kwargs", {"eps": "x" * 100_000}),
}


@pytest.mark.parametrize("name", PLANS)
def test_plans_beyond_all_bounds(trained, tmp_path, name):
    folder = shutil.copytree(trained, tmp_path / "folder")
    plans = json.loads((folder / "plans.json").read_text())
    key, value = PLANS[name]
    plans["configurations"]["base"]["architecture"]["arch_kwargs"][key] = value
    (folder / "plans.json").write_text(json.dumps(plans))
    check_refusal(run(command("import-nnunet", folder, "--output", tmp_path / "m.safetensors"), tmp_path))
