"""Odd and faulty scans given to volseg, nnU-Net and TotalSegmentator: who gives the right volume, who refuses, and how.

    VOLSEG_DATA=DATA python benchmarks/reading/peers.py --peers-python PYTHON [--all] [--record]

The files are small, written by seeded scripts (tests/reading), and the standard says what is right for each: plain,
without a field, cut short, with values or scalings that are no numbers, and DICOM series that are odd on purpose. Then
the scans in DATA/wild, compared with volseg's reading. Each peer gets the kinds of files that it takes, through the
reader that its own command uses. PYTHON is one that has nnunetv2 and totalsegmentator. With --all every file is
printed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.record import CHECKOUT, publish, record_options
from common.results import Row, headline, table

# The writers are part of the tests, which are not installed.
sys.path.insert(0, str(CHECKOUT))

from tests.data.io.conformance.formats import FORMATS, Format
from tests.reading import dicom
from tests.reading.kinds import DESCRIBED, NAMED, SEVERAL, kind
from tests.reading.oracles import by_volseg
from tests.reading.right import REFUSED, SHORT, Right
from tests.reading.volume import Volume, difference, grid, sample
from volseg.errors import InputError

TIMEOUT_S = 60
PEERS = ("nnunet", "totalsegmentator")
TAKES = {
    "nnunet": lambda path: path.name.endswith((".nii", ".nii.gz", ".nrrd", ".mha")),
    "totalsegmentator": lambda path: path.is_dir() or path.name.endswith((".nii", ".nii.gz", ".zip", ".dcm")),
}
RIGHT, WRONG, REFUSES, LIBRARY, DIES = (
    "right volume", "taken as it is", "one sentence", "an exception of a library", "dies or hangs",
)  # fmt: skip
Answers = dict[str, "str | Volume"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", required=True, type=Path, help="a Python that has both peers")
    parser.add_argument("--all", action="store_true", help="print every file")
    record_options(parser)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    tables = []
    with tempfile.TemporaryDirectory(prefix="volseg-peers-") as folder:
        written = dict(inputs(Path(folder) / "written"))
        paths = {name: path for name, (path, _) in written.items()}
        answers = everyone(paths, options.peers_python, Path(folder))
        outcomes = {
            reader: {name: judged(answer, written[name][1]) for name, answer in found.items()}
            for reader, found in answers.items()
        }
        tables.append(table(summary(outcomes), caption=f"{len(written)} files of which the right answer is known"))
        tables.append(table(silent(outcomes), caption=f"Files {WRONG}, which are another volume or none"))
        if options.all:
            show(outcomes)
        if data := os.environ.get("VOLSEG_DATA"):
            tables.append(table(wild(Path(data) / "wild", options.peers_python, Path(folder)), caption="Real scans"))
    heads = [
        headline(f"odd or faulty files that {reader} takes as they are", reader, WRONG) for reader in ("volseg", *PEERS)
    ]
    publish(options, "reading-peers", "Odd and faulty scans, read by volseg and by its peers", tables, heads)


def inputs(folder: Path) -> Iterator[tuple[str, tuple[Path, Right]]]:
    """Files by name, and what is right for each."""
    for form in FORMATS:
        if not any(takes(Path(f"a{form.suffix}")) or not form.suffix for takes in TAKES.values()):
            continue
        for name, make in kinds_of(form).items():
            place = folder / form.name.replace(" ", "-") / name.replace(" ", "-")
            place.mkdir(parents=True)
            yield f"{form.name}: {name}", make(place / f"a{form.suffix}")
    for name in [*DESCRIBED, *NAMED, *SEVERAL]:
        datasets, right = kind(name)
        yield f"dicom: {name}", (dicom.save_folder(datasets, folder / "kinds" / name.replace(" ", "-")), right)


def kinds_of(form: Format) -> dict[str, Callable[[Path], tuple[Path, Right]]]:
    """What is done to a plain file of a format."""
    order = form.orders[0]

    def plain(path: Path, voxels: np.ndarray | None = None, **more: Any) -> tuple[Path, Right]:
        place = more.pop("place", grid(order=13))
        volume = Volume(sample() if voxels is None else voxels, place)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            written = form.write(path, volume, order, **more)
            return written, form.meaning(written)

    def cut(path: Path, share: float) -> tuple[Path, Right]:
        written, _ = plain(path)
        part = form.parts(written)[-1]
        whole = part.read_bytes()
        part.write_bytes(whole[: min(int(len(whole) * share), len(whole) - 1)])
        return written, SHORT

    def with_value(path: Path, value: float) -> tuple[Path, Right]:
        voxels = sample("f4")
        voxels[3, 2, 1] = value
        return plain(path, voxels)[0], REFUSED

    made: dict[str, Callable[[Path], tuple[Path, Right]]] = {
        "plain": plain,
        "oblique": lambda path: plain(path, place=grid(degrees=25, order=11)),
        "cut in the middle": lambda path: cut(path, 0.6),
        "cut by a byte": lambda path: cut(path, 1.0),
        # A reader may take it; to segment it is another matter.
        "constant": lambda path: plain(path, np.full((7, 6, 5), 7, np.int16)),
    }
    for name, absent in form.absent.items():
        made[f"without {name}"] = lambda path, edit=absent.edit: plain(path, edit=edit)
    if form.scaling:
        made["scaled"] = lambda path: plain(path, scaling=(2.0, -10.0))
        made["scaled by infinity"] = lambda path: plain(path, scaling=(np.inf, 0.0))
    if "f4" in form.dtypes:
        made["a voxel is NaN"] = lambda path: with_value(path, np.nan)
        made["a voxel is infinite"] = lambda path: with_value(path, np.inf)
    return made


def everyone(paths: Mapping[str, Path], python: Path, folder: Path) -> dict[str, Answers]:
    """What each reader makes of the files that it takes."""
    found: dict[str, Answers] = {"volseg": {name: of_volseg(path) for name, path in paths.items()}}
    for peer in PEERS:
        taken = {name: path for name, path in paths.items() if TAKES[peer](path)}
        found[peer] = of_peer(peer, taken, python, Path(tempfile.mkdtemp(dir=folder)))
    return found


def of_volseg(path: Path) -> str | Volume:
    try:
        return by_volseg(path)
    except InputError as error:
        return f"{REFUSES}: {error}"


def of_peer(peer: str, paths: Mapping[str, Path], python: Path, folder: Path) -> Answers:
    """The answers of a peer; it is started again after a file that it died or hung on."""
    found: Answers = {}
    while left := {name: str(path) for name, path in paths.items() if name not in found}:
        manifest = folder / "manifest.json"
        manifest.write_text(json.dumps(left))
        command = [python, Path(__file__).with_name("peer_readers.py"), peer, manifest, folder]
        with subprocess.Popen(command, stdout=-1, stderr=subprocess.DEVNULL, text=True) as process:
            begun = answers_of(process, found)
            process.kill()
        if begun is None:
            sys.exit(f"{python} did not start the reader of {peer}.")
        found.setdefault(begun, f"{DIES}: no answer")
    return found


def answers_of(process: "subprocess.Popen[str]", found: Answers) -> str | None:
    """Add the answers of a process until it ends or hangs; the name of the file that it began last."""
    assert process.stdout is not None
    begun = None
    timer = threading.Timer(TIMEOUT_S, process.kill)
    for line in process.stdout:
        timer.cancel()
        timer = threading.Timer(TIMEOUT_S, process.kill)
        timer.start()
        if not line.startswith("{"):
            continue
        answer = json.loads(line)
        begun = answer.get("begin", begun)
        if "error" in answer:
            found[answer["name"]] = f"{LIBRARY}: {answer['error']}"
        elif "several" in answer:
            found[answer["name"]] = f"{WRONG}: {answer['several']}"
        elif "file" in answer:
            with np.load(answer["file"]) as arrays:
                found[answer["name"]] = Volume(arrays["voxels"], arrays["affine"])
    timer.cancel()
    return begun


def judged(answer: str | Volume, right: Right) -> str:
    """How an answer is to be called."""
    if isinstance(answer, Volume):
        same = any(difference(answer.voxels, answer.affine, volume) == "" for volume in right.volumes)
        return RIGHT if same else WRONG
    return answer.partition(": ")[0]


def summary(outcomes: Mapping[str, Mapping[str, str]]) -> list[Row]:
    rows = []
    for reader, found in outcomes.items():
        counts = Counter(found.values())
        kinds = (RIGHT, WRONG, REFUSES, LIBRARY, DIES)
        rows.append({"reader": reader, "files": len(found), **{one: counts[one] for one in kinds}})
    return rows


def silent(outcomes: Mapping[str, Mapping[str, str]]) -> list[Row]:
    """What peers take though it is another volume or none, by kind, with the formats."""
    kinds: dict[str, dict[str, list[str]]] = {}
    for peer in PEERS:
        for name, outcome in outcomes[peer].items():
            form, what = name.split(": ", 1)
            if outcome == WRONG:
                kinds.setdefault(what, {}).setdefault(peer, []).append(form)
    return [
        {"file": what} | {peer: ", ".join(found.get(peer, [])) or "-" for peer in PEERS}
        for what, found in kinds.items()
    ]


def show(outcomes: Mapping[str, Mapping[str, str]]) -> None:
    for name in outcomes["volseg"]:
        print(name, *(f"{reader}: {found[name]}" for reader, found in outcomes.items() if name in found), sep="\n    ")


def wild(folder: Path, python: Path, work: Path) -> list[Row]:
    """Real scans: what each makes of them, peers compared with volseg."""
    paths = {path.name: path for path in sorted(folder.iterdir())}
    answers = everyone(paths, python, work)
    rows = []
    for name in paths:
        ours = answers["volseg"][name]
        row: Row = {"scan": name, "volseg": "volume" if isinstance(ours, Volume) else ours}
        for peer in PEERS:
            theirs = answers[peer].get(name, "does not take it")
            if isinstance(theirs, Volume):
                same = isinstance(ours, Volume) and difference(theirs.voxels, theirs.affine, ours)
                theirs = "volume" if same is False else f"another volume: {same}" if same else "the same volume"
            row[peer] = theirs.replace(str(folder), "DATA")[:160]
        row["volseg"] = str(row["volseg"]).replace(str(folder), "DATA")[:160]
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
