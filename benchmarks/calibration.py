"""How well expected Dice and volume intervals agree with the truth, on scans that a model was not trained on.

    python benchmarks/calibration.py DATASET [--model hippocampus] [--cases N] [--copies 4] [--write] [--record]

Each member of an ensemble segments the cases of its own fold, as they are and in degraded copies (noise, blur, a
truncated field of view, a wrong voxel size; see volseg/confidence/degraded.py). Temperature, map and intervals are
fitted on the other folds than the one that is scored. `--write` puts the calibration into the model file, fitted on all
of them; its weights stay as they are. Needs volseg and the dataset the model was trained on.
"""

import argparse
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
from common.record import publish, record_options, slug
from common.results import headline, table
from precision import held_out
from scipy.stats import spearmanr

from volseg import Segmenter
from volseg.api.training.calibrate import of_member, records_of
from volseg.confidence.fitting import Estimates, best_temperature, fit, left_out
from volseg.confidence.records import TEMPERATURES, Records, ScanRecord
from volseg.files import whole_file
from volseg.modelfile import HEADER_KEY, find_model, read_card
from volseg.modelfile.calibration import Calibration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--model", default="hippocampus", help="a bundled name or a model file")
    parser.add_argument("--cases", type=int, help="the first N of each fold")
    parser.add_argument("--copies", type=int, default=4, help="degraded copies of each case")
    parser.add_argument("--records", type=Path, help="a file to keep the sums in, or to read them from if it exists")
    parser.add_argument("--write", action="store_true", help="write the calibration into the model file")
    record_options(parser)
    options = parser.parse_args()
    if options.records and options.records.exists():
        scans = list(Records.model_validate_json(options.records.read_text()).scans)
    else:
        scans = collect(options)
    if options.records:
        options.records.write_text(Records(scans=tuple(scans)).model_dump_json())
    clean = [scan for scan in scans if not scan.kind]
    temperatures = [best_temperature([scan for scan in scans if scan.group != fold]) for fold in groups(scans)]
    found = [of_fold(scans, fold, name) for name in scans[0].labels for fold in groups(scans)]
    kinds = ("all", "clean", *sorted({scan.kind for scan in scans if scan.kind}))
    rows = [row(kind, scans, found) for kind in kinds]
    publish(
        options,
        f"calibration-{slug(Path(options.model).stem)}",
        f"Expected Dice of {options.model}, {len(clean)} cases out of fold, with {options.copies} degraded copies each",
        [table(rows)],
        [headline("expected Dice, error against that of the best constant", "all", "error / best constant's")],
        note=f"Temperatures of the folds: {', '.join(str(TEMPERATURES[one]) for one in temperatures)}.",
    )
    calibration = fit(scans, out_of_fold=True)
    assert calibration is not None
    before, after = calibration.before, calibration.after
    print(f"temperature {calibration.temperature}, ECE {before and before.error:.4f} to {after and after.error:.4f}")
    if options.write:
        write_calibration(find_model(options.model), calibration)


def collect(options: argparse.Namespace) -> list[ScanRecord]:
    """The records of all members on their own unseen cases."""
    whole = Segmenter.load(options.model)
    scans = []
    for member, (network, record) in enumerate(
        zip(whole.labeller.network.members, whole.card.training["members"], strict=True)
    ):
        alone = replace(whole, labeller=replace(whole.labeller, network=network))
        for number, case in enumerate(held_out(options.dataset, record["fold"])[: options.cases]):
            scans += of_member(records_of(alone, case, number, options.copies), member)
        print(f"member {member} done", flush=True)
        if options.records:
            options.records.with_suffix(".part").write_text(Records(scans=tuple(scans)).model_dump_json())
    return scans


def groups(scans: list[ScanRecord]) -> list[int]:
    """The folds of the scans."""
    return sorted({scan.group for scan in scans})


def row(kind: str, scans: list[ScanRecord], found: list[Estimates]) -> dict[str, float | str]:
    """The figures of one kind of scan, over all labels."""
    dice, estimates, covered = [], [], []
    wanted = "" if kind == "clean" else kind
    for one in found:
        chosen = [place for place, at in enumerate(one.scans) if kind == "all" or scans[at].kind == wanted]
        dice += one.dice[chosen].tolist()
        estimates += one.expected[chosen].tolist()
        covered += one.covered[chosen].tolist()
    true, guess, inside = np.array(dice), np.array(estimates), np.array(covered)
    error, constant = np.abs(true - guess).mean(), np.abs(true - np.median(true)).mean()
    return {
        "scans": kind,
        "results": len(true),
        "mean Dice": round(float(true.mean()), 4),
        "error of expected Dice": round(float(error), 4),
        "error of the best constant": round(float(constant), 4),
        "error / best constant's": round(float(error / constant), 3),
        "rank correlation": round(float(spearmanr(true, guess)[0]), 3),
        "coverage of 90 % volume intervals": round(float(np.nanmean(inside)), 3) if kind in ("all", "clean") else "",
    }


def of_fold(scans: list[ScanRecord], fold: int, name: str) -> Estimates:
    """Estimates of a label on a fold, temperature included from the others."""
    index = best_temperature([scan for scan in scans if scan.group != fold])
    return left_out(scans, name, index, only=fold)


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Replace the calibration in a model file's header; the bytes of its weights are copied."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    card = json.loads(header["__metadata__"][HEADER_KEY])
    card["calibration"] = calibration.model_dump(mode="json")
    header["__metadata__"][HEADER_KEY] = json.dumps(card, separators=(",", ":"))
    text = json.dumps(header, separators=(",", ":")).encode()
    # The weights begin at a multiple of 8 bytes.
    text += b" " * (-len(text) % 8)
    with whole_file(path) as temporary:
        temporary.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    assert read_card(path).calibration == calibration


if __name__ == "__main__":
    main()
