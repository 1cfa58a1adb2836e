"""One class of checks for the readers of all formats: the right volume, or one sentence that says why not."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from tests.data.io.conformance.formats import FORMATS, Absent, Format
from tests.fuzzing.inputs import Input
from tests.fuzzing.outcomes import GOOD, outcome_of
from tests.reading.right import Right
from tests.reading.volume import ORDERS, Volume, difference, grid, sample
from volseg.data.io.reading import read_scan
from volseg.errors import InputError

NAMES = (
    "with blanks",
    "Grüße 漢字",
    "line\nbreak",
    "tab\there",
    "per%cent {braces} [x]*?",
    "'quotes\"",
    "-dash",
    "x" * 200,
)
# Not UTF-8, as archives of old scanners have it.
LATIN = os.fsdecode(b"caf\xe9")
SCALINGS = ((2.0, -10.0), (-0.5, 3.0), (0.001, 1e4), (1.0, -1024.0))


def differs(path: Path, right: Volume) -> str:
    scan = read_scan(path)
    return difference(scan.channels[0], scan.geometry.affine, right)


def fault(name: str, path: Path, right: Right, damaged: bool = False, odd_numbers: bool = False) -> str:
    """What is wrong with the outcome of reading; empty if nothing."""
    outcome = outcome_of(Input(0, name, path, "", right, damaged, odd_numbers))
    return "" if outcome.kind in GOOD else f"{outcome.kind}: {outcome.detail}"


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
class TestEveryFormat:
    def test_all_axis_orders_and_directions_at_their_place(self, kind: Format, tmp_path: Path) -> None:
        faults = {}
        for order in range(len(ORDERS)):
            volume = Volume(sample(seed=order), grid(order=order))
            faults[order] = differs(kind.write(tmp_path / f"{order}{kind.suffix}", volume, kind.orders[0]), volume)
        assert {order: one for order, one in faults.items() if one} == {}

    @pytest.mark.parametrize("order", [0, 11, 38])
    def test_oblique_axes_at_their_place_with_a_warning(self, kind: Format, tmp_path: Path, order: int) -> None:
        volume = Volume(sample(), grid(degrees=25, order=order))
        path = kind.write(tmp_path / f"a{kind.suffix}", volume, kind.orders[0])
        assert differs(path, volume) == ""
        assert any("oblique" in warning for warning in read_scan(path).warnings)

    def test_an_upright_file_that_states_everything_has_no_warning(self, kind: Format, tmp_path: Path) -> None:
        scan = read_scan(kind.write(tmp_path / f"a{kind.suffix}", Volume(sample(), grid()), kind.orders[0]))
        assert (scan.warnings, scan.unstated) == ((), "")

    def test_one_millimetre_in_all_directions(self, kind: Format, tmp_path: Path) -> None:
        """What libraries report where they know nothing may be the truth as well."""
        volume = Volume(sample(), np.diag([-1.0, -1.0, 1.0, 1.0]))
        assert differs(kind.write(tmp_path / f"a{kind.suffix}", volume, kind.orders[0]), volume) == ""

    def test_dtypes_and_byte_orders_keep_every_value(self, kind: Format, tmp_path: Path) -> None:
        faults = {}
        for dtype in kind.dtypes:
            for order in kind.orders if kind.swapped is None or dtype in kind.swapped else "<":
                voxels = sample(dtype)
                # float32 holds whole numbers to 2^24: beyond it, values have to stay in their type.
                voxels[0, 0, :2] = (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype[0] in "iu" else (-1e30, 1e-30)
                volume = Volume(voxels, grid())
                path = kind.write(tmp_path / f"{dtype}{'lb'['<>'.index(order)]}{kind.suffix}", volume, order)
                faults[dtype, order] = differs(path, volume)
                assert read_scan(path).channels[0].dtype.isnative
        assert {one: wrong for one, wrong in faults.items() if wrong} == {}

    def test_what_a_file_does_not_state_is_warned_of_or_refused_by_name(self, kind: Format, tmp_path: Path) -> None:
        faults = {}
        for name, absent in kind.absent.items():
            volume = Volume(sample(), grid(order=13))
            path = kind.write(tmp_path / f"{name}{kind.suffix}", volume, kind.orders[0], edit=absent.edit)
            faults[name] = fault(kind.name, path, kind.meaning(path)) or self.unnamed(path, absent)
        assert {one: wrong for one, wrong in faults.items() if wrong} == {}

    def unnamed(self, path: Path, absent: Absent) -> str:
        """What was said of an absent field, if that does not name it and the file was refused."""
        try:
            read_scan(path)
        except InputError as error:
            said = str(error).replace(str(path), "PATH")
            return "" if any(word.lower() in said.lower() for word in absent.words) else f"does not name it: {said}"
        return ""

    def test_short_data_is_refused_wherever_it_ends(self, kind: Format, tmp_path: Path) -> None:
        path = kind.write(tmp_path / f"a{kind.suffix}", Volume(sample(), grid()), kind.orders[0])
        faults = {}
        for file in kind.parts(path)[:2]:
            whole = file.read_bytes()
            ends = {*range(0, len(whole), max(1, len(whole) // 40)), len(whole) - 1}
            # The line breaks at the end of a header without voxels may be missing.
            ends = {end for end in ends if end < len(whole.rstrip(b"\n")) or file.suffix not in (".nhdr", ".mhd")}
            for end in sorted(ends):
                file.write_bytes(whole[:end])
                faults[file.name, end] = fault(kind.name, path, Right(short=True), damaged=True)
            file.write_bytes(whole)
        assert {one: wrong for one, wrong in faults.items() if wrong} == {}

    def test_a_constant_image_is_refused_as_one(self, kind: Format, tmp_path: Path) -> None:
        volume = Volume(np.full((7, 6, 5), 7, np.int16), grid())
        with pytest.raises(InputError, match="constant"):
            read_scan(kind.write(tmp_path / f"a{kind.suffix}", volume, kind.orders[0]))

    @pytest.mark.parametrize("name", [*NAMES, LATIN], ids=[*(ascii(name)[:12] for name in NAMES), "latin-1"])
    def test_names_do_not_matter(self, kind: Format, tmp_path: Path, name: str) -> None:
        volume = Volume(sample(), grid())
        folder = tmp_path / name
        folder.mkdir()
        assert differs(kind.write(folder / f"{name}{kind.suffix}", volume, kind.orders[0]), volume) == ""

    def test_reading_leaves_the_files_alone(self, kind: Format, tmp_path: Path) -> None:
        path = kind.write(tmp_path / f"a{kind.suffix}", Volume(sample(), grid()), kind.orders[0])
        files = sorted(file for file in tmp_path.rglob("*") if file.is_file())
        before = [hashlib.sha256(file.read_bytes()).digest() for file in files]
        (array,) = read_scan(path).channels
        kept = array.copy()
        if array.flags.writeable:
            array[...] = 0
        assert [hashlib.sha256(file.read_bytes()).digest() for file in files] == before
        np.testing.assert_array_equal(read_scan(path).channels[0], kept)
        assert sorted(file for file in tmp_path.rglob("*") if file.is_file()) == files


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind.scaling], ids=lambda kind: kind.name)
class TestScalings:
    @pytest.mark.parametrize("scaling", SCALINGS)
    def test_a_scaling_is_applied(self, kind: Format, tmp_path: Path, scaling: tuple[float, float]) -> None:
        volume = Volume(sample(), grid())
        path = kind.write(tmp_path / f"a{kind.suffix}", volume, kind.orders[0], scaling=scaling)
        assert differs(path, Volume(volume.voxels * scaling[0] + scaling[1], volume.affine)) == ""

    @pytest.mark.parametrize("scaling", [(0.0, 5.0), (np.inf, 0.0), (1.0, np.inf), (2.0, np.nan)])
    def test_a_scaling_without_a_meaning_is_refused_or_none(self, kind: Format, tmp_path: Path, scaling: tuple) -> None:
        path = kind.write(tmp_path / f"a{kind.suffix}", Volume(sample(), grid()), kind.orders[0], scaling=scaling)
        assert fault(kind.name, path, kind.meaning(path), odd_numbers=True) == ""


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if "f4" in kind.dtypes], ids=lambda kind: kind.name)
class TestFloatingPoint:
    def test_voxels_that_are_no_numbers_are_refused(self, kind: Format, tmp_path: Path) -> None:
        for value in (np.nan, np.inf):
            voxels = sample("f4")
            voxels[3, 2, 1] = value
            with pytest.raises(InputError, match=r"NaN|[Ii]nf"):
                read_scan(kind.write(tmp_path / f"a{kind.suffix}", Volume(voxels, grid()), kind.orders[0]))
