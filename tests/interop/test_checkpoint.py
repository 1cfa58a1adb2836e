"""Checkpoints are read as numbers and text; no code that a file names is executed."""

import contextlib
import os
import zipfile

import numpy as np
import pytest
import torch

from tests.interop.folders import write_folder
from tests.interop.variants import VARIANTS
from volseg.errors import InputError
from volseg.interop.nnunet_checkpoint import STAND_INS, NumberType, number, read_checkpoint

SMALL = {
    "network_weights": {"a.weight": torch.arange(3.0)},
    "init_args": {"configuration": "3d_lowres"},
    "trainer_name": "nnUNetTrainerNoMirroring",
    "inference_allowed_mirroring_axes": None,
}


def saved(path, document):
    torch.save(document, path)
    return path


def test_the_parts_that_prediction_needs_are_read(tmp_path):
    checkpoint = read_checkpoint(saved(tmp_path / "one.pth", SMALL))
    assert (checkpoint.configuration, checkpoint.trainer) == ("3d_lowres", "nnUNetTrainerNoMirroring")
    assert checkpoint.mirror_axes == ()
    assert checkpoint.weights["a.weight"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("spelling", ["numpy._core.multiarray", "numpy.core.multiarray"])
def test_a_checkpoint_as_training_leaves_it_is_read(tmp_path, spelling):
    """NumPy 1 and 2 write their scalars under different names; torch writes both as text."""
    path = write_folder(tmp_path, VARIANTS["unstripped"]) / "fold_0" / "checkpoint_final.pth"
    other = tmp_path / "other.pth"
    found = b""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                for one in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
                    content = content.replace(b"c" + one + b"\nscalar", b"c" + spelling.encode() + b"\nscalar")
                found = content
            target.writestr(entry, content)
    assert spelling.encode() + b"\nscalar" in found
    plain, copied = read_checkpoint(path), read_checkpoint(other)
    assert copied.mirror_axes == (0, 2)
    assert all(torch.equal(copied.weights[name], one) for name, one in plain.weights.items())


def test_torch_is_told_to_read_weights_only(tmp_path, monkeypatch):
    """Nothing is left to a default of torch, which was another one before 2.6."""
    calls, load = [], torch.load
    path = saved(tmp_path / "one.pth", SMALL)
    monkeypatch.setattr(torch, "load", lambda *given, **options: calls.append(options) or load(*given, **options))
    read_checkpoint(path)
    assert calls == [{"map_location": "cpu", "weights_only": True, "mmap": True}]


@pytest.mark.parametrize("kind", ["f8", "f4", "f2", "i8", "i4", "u1", "b1"])
def test_numpy_scalars_become_their_values(tmp_path, kind):
    value = np.array([1.0], kind)[0]
    path = saved(tmp_path / "scalar.pth", {"value": value})
    with torch.serialization.safe_globals(STAND_INS):
        read = torch.load(path, weights_only=True)["value"]
    assert read == value
    assert type(read) in (bool, int, float)


def test_the_byte_order_of_another_machine_is_applied():
    kind = NumberType("f8", False, True)
    kind.__setstate__((3, ">", None, None, None, -1, -1, 0))
    assert number(kind, np.array([2.5], ">f8").tobytes()) == 2.5


class Danger:
    """Runs a command when it is unpickled in the usual way."""

    def __reduce__(self):
        return os.system, ("touch danger_was_here",)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Danger(), "posix.system"),
        (np.zeros(2), "_reconstruct"),
    ],
)
def test_code_is_rejected_by_name_and_not_executed(tmp_path, monkeypatch, value, named):
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "bad.pth", {**SMALL, "logging": value})
    with pytest.raises(InputError, match=named):
        read_checkpoint(path)
    assert not (tmp_path / "danger_was_here").exists()


def test_numpy_types_other_than_numbers_are_rejected(tmp_path):
    path = saved(tmp_path / "bad.pth", {**SMALL, "logging": np.dtype("O")})
    with pytest.raises(InputError, match="NumPy type 'O8' is not a number type"):
        read_checkpoint(path)


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.98])
def test_a_truncated_file_is_one_sentence(tmp_path, keep):
    path = saved(tmp_path / "torn.pth", SMALL)
    content = path.read_bytes()
    path.write_bytes(content[: keep if keep >= 1 else int(len(content) * keep)])
    with pytest.raises(InputError, match="corrupt") as rejection:
        read_checkpoint(path)
    assert "\n" not in str(rejection.value)


def test_corrupt_pickles_are_one_sentence(tmp_path):
    """With every fifth byte of the pickle inverted: rejected or read as something else, but no other error."""
    path, other = saved(tmp_path / "whole.pth", SMALL), tmp_path / "flipped.pth"
    with zipfile.ZipFile(path) as source:
        entries = {entry.filename: source.read(entry) for entry in source.infolist()}
    name = next(one for one in entries if one.endswith("data.pkl"))
    for place in range(0, len(entries[name]), 5):
        content = bytearray(entries[name])
        content[place] ^= 0xFF
        with zipfile.ZipFile(other, "w") as target:
            for one, stored in entries.items():
                target.writestr(one, bytes(content) if one == name else stored)
        with contextlib.suppress(InputError):
            read_checkpoint(other)


@pytest.mark.parametrize("change", [{"network_weights": None}, {"init_args": {}}, {"trainer_name": ...}])
def test_other_files_of_torch_are_rejected(tmp_path, change):
    document = {key: value for key, value in {**SMALL, **change}.items() if value is not ...}
    with pytest.raises(InputError, match="not a checkpoint of nnU-Net v2"):
        read_checkpoint(saved(tmp_path / "other.pth", document))


def test_weights_that_are_not_tensors_are_rejected(tmp_path):
    with pytest.raises(InputError, match="more than named tensors"):
        read_checkpoint(saved(tmp_path / "other.pth", {**SMALL, "network_weights": {"a": 1}}))


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"Could not read .*No such file"):
        read_checkpoint(tmp_path / "none.pth")
