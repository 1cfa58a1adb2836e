"""The page of the documentation about positions, from what was measured."""

from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby

from tests.dicom.proof.conformance import ALLOWED
from tests.dicom.proof.phantom_series import LABELS, SIZE, SPACINGS, Series
from tests.dicom.proof.positions import LEAST_DICE

BEGINNING = """# Positions of DICOM results, as other software reads them

`make positions` measures this page and writes it (`benchmarks/dicom/positions.py`); do not edit it. A part of it is a
test (`tests/dicom/proof/test_positions.py`).

The phantom is a body in patient millimetres with {labels} labels: an ellipsoid, a tube with a hole, a ball, a hook and
a grain of a few voxels. No mirror image, rotation or exchange of axes gives it again. It is written as {series} series
of {size} voxels: five orientations, both slice directions, equal spacing ({equal} mm) and unequal spacing
({unequal} mm), classic and enhanced (multi-frame) files, CT and MR. Intensity thresholds stand in for a model. Each
result is read by software that is not volseg's, and compared with the phantom itself:

- **labels** (segmentations, structure sets): the voxels in patient space. Each label's centre of mass has to be within
  half a voxel; the Dice coefficient has to be 1 where the format holds voxels, and 0.98 for contours, which the reader
  fills.
- **reports**: centre of mass, and volume in place of Dice (1 less the relative error).
- **pictures**: the fraction of pairs of labels that lie on the right side of each other, by their colours.

Readers: {readers}.
SimpleITK (GDCM) reads the pixels of a segmentation, and the frames are laid on its own grid of the source by their
stated positions; it does not know label maps. dcmqi reads the volumes of a report, not its points. matplotlib fills
contours by pixel centres and the even-odd rule. plastimatch fills them with its own code; it joins overlapping contours
unless it is told to combine them by exclusive or, which the `rtstruct:xor` files need. It reads no multi-frame series,
so of those it gets the grid from SimpleITK.
"""
_PACKAGES = ("SimpleITK", "highdicom", "dcmqi", "matplotlib", "pydicom")


def written(everything: Mapping) -> str:
    """The whole page. `everything`: by (writer and format, reader) and series, a `Measured`."""
    every_series = list(dict.fromkeys(series for found in everything.values() for series in found))
    beginning = BEGINNING.format(
        labels=len(LABELS),
        series=len(every_series),
        size=" x ".join(map(str, SIZE)),
        readers=", ".join(_versions()),
        **{name: " x ".join(f"{one:g}" for one in spacing) for name, spacing in SPACINGS.items()},
    )
    ours = {key: found for key, found in everything.items() if " " not in key[0]}
    peers = {key: found for key, found in everything.items() if " " in key[0]}
    parts = [beginning, "## Summary\n", *summary(ours)]
    if peers:
        parts += ["\n## Other writers\n", PEERS, *summary(peers), "", *matrix_of_peers(peers)]
    parts += ["\n## Conformance\n", CONFORMANCE, *allowed(), NOT_CHECKED, "## Every series\n", EVERY]
    for output, found in groupby(ours.items(), lambda one: one[0][0]):
        parts += [f"\n### {output}\n", *matrix({key[1]: values for key, values in found})]
    return "\n".join(parts) + "\n"


CONFORMANCE = """`dciodvfy` and `dcentvfy` (Debian's dicom3tools of 2022) say nothing about the files of the phantom.
About the objects of every format, and about the study they are in, they say these lines and no others
(`tests/dicom/proof/test_conformance.py`):
"""
NOT_CHECKED = """
Label map segmentations are younger than dicom3tools: what `dciodvfy` says of them ("Information Object Not found", and
that the number of the background, 0, is no segment) is shown by the test and decides nothing. `dicom-validator` was
not used: it needs the text of the standard, which it downloads, and the machine of the measurements has no way there.
"""
PEERS = """The same phantom and readers, with plain use of highdicom's `Segmentation` and of rt-utils 1.2.7. rt-utils
reads no multi-frame series. It draws contours through the centres of the pixels at a border, which filling by pixel
centres may leave out; where rows and columns differ in spacing, it exchanges the two (rt-utils 84 and 102).
"""
EVERY = """Dice coefficient and distance of the centres of mass in millimetres, of the worst label and modality.
"""


def _versions() -> Iterable[str]:
    for name in _PACKAGES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    yield "plastimatch (Debian)"


def is_right(output: str, one) -> bool:
    """Whether a measure holds what the page asks for."""
    least = LEAST_DICE.get(output.split()[-1].split(":")[0], 1 - 1e-6)
    # Not a number where a format or reader gives no place.
    return not one.reason and not one.voxels > 0.5 and one.dice >= least


def summary(everything: Mapping) -> Iterable[str]:
    """A row per file and reader: the worst over all series."""
    yield "| file | reader | series right | worst centre, mm | in voxels | worst Dice | failures |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for (output, reader), found in everything.items():
        read = [one for one in found.values() if not one.reason]
        right = sum(is_right(output, one) for one in found.values())
        failed = Counter(one.reason[:100] for one in found.values() if one.reason)
        worst = ("-", "-", "-")
        if read:
            worst = (
                number(max(one.millimetres for one in read)),
                number(max(one.voxels for one in read)),
                f"{min(one.dice for one in read):.4f}",
            )
        cells = (
            output,
            reader,
            f"{right} of {len(found)}",
            *worst,
            "; ".join(f"{count} times {why}" for why, count in failed.items()) or "none",
        )
        yield f"| {' | '.join(cells)} |"


def allowed() -> Iterable[str]:
    """A row per line that dicom3tools may say."""
    yield "| line, as a regular expression | objects | why the file is right |"
    yield "| --- | --- | --- |"
    for one in ALLOWED:
        # A bar would end the cell.
        pattern = one.pattern.replace("|", "\\|")
        yield f"| `{pattern}` | {', '.join(one.kinds)} | {one.reason} |"


def matrix(by_reader: Mapping[str, Mapping]) -> Iterable[str]:
    """A row per series without its modality, a column per reader."""
    yield f"| orientation | slices | spacing | files | {' | '.join(by_reader)} |"
    yield f"| --- | --- | --- | --- |{' --- |' * len(by_reader)}"
    every_series = next(iter(by_reader.values()))
    for what in dict.fromkeys((one.orientation, one.direction, one.spacing, one.kind) for one in every_series):
        yield row(what, by_reader)


def matrix_of_peers(peers: Mapping) -> Iterable[str]:
    """The rows of classic files, which every writer writes."""
    by_reader = {" by ".join(key): found for key, found in peers.items()}
    return [line for line in matrix(by_reader) if "| enhanced |" not in line]


def row(what: tuple[str, str, str, str], by_reader: Mapping[str, Mapping]) -> str:
    """One row of a matrix: the worst of all modalities."""
    cells = []
    for found in by_reader.values():
        both = [found[series] for modality in ("CT", "MR") if (series := Series(*what, modality)) in found]
        reason = next((one.reason for one in both if one.reason), "")
        worst = f"{min(one.dice for one in both):.4f}, {number(max(one.millimetres for one in both))} mm"
        worst = worst.removesuffix(", - mm").replace("missing mm", "missing")
        cells.append(reason[:60] or worst)
    return f"| {' | '.join((*what, *cells))} |"


def number(value: float) -> str:
    """A distance; none at all, or that to a label that is not there."""
    return "-" if value != value else f"{value:.3f}" if value < 1e6 else "missing"
