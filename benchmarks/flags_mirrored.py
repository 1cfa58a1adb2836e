"""Whether mirrored and rotated headers are found where labels have sides: phantoms with a left and a right kidney.

    python benchmarks/flags_mirrored.py [--work FOLDER] [--steps 200] [--scans 20] [--record]

Trains for a minute or two on phantoms, then segments new ones as they are, with a mirrored and with rotated headers.
Needs nothing but volseg. A run in `--work` is used again.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from common.flag_faults import Fault, faults_of, mirrored
from common.paired_phantoms import make_trunk, write_trunks
from common.record import publish, record_options
from common.results import headline, table
from flags import CLEAN, Scored, row, scored

from volseg import Segmenter, train

TRAINING, FIRST_NEW = 40, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="for the phantoms and the run; a temporary folder otherwise")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--scans", type=int, default=20, help="new phantoms")
    record_options(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        segmenter = Segmenter.load(trained(options.work or Path(temporary), options.steps), device="cpu")
    found = [one for number in range(options.scans) for one in score_trunk(segmenter, FIRST_NEW + number)]
    kinds = list(dict.fromkeys(one.fault for one in found))
    publish(
        options,
        "flags-mirrored",
        f"Flags on phantoms with left and right labels, {options.steps} steps, {options.scans} new phantoms",
        [table([row(kind, [one for one in found if one.fault == kind]) for kind in kinds])],
        [headline("mirrored headers that are flagged", "header mirrored", "of these flagged")],
    )


def trained(work: Path, steps: int) -> Path:
    """The model of a run on phantoms in a folder."""
    model = work / "run" / "model.safetensors"
    if not model.is_file():
        write_trunks(work / "trunks", TRAINING)
        train(work / "trunks", work / "run", steps=steps, device="cpu", overwrite=True)
    return model


def score_trunk(segmenter: Segmenter, seed: int) -> list[Scored]:
    """A new phantom as it is, mirrored, and with rotated headers."""
    scan, reference, affine = make_trunk(seed)
    array = scan.astype(np.float32)
    rotated = [one for one in faults_of(array, affine, reference, np.random.default_rng(seed)) if "rotated" in one.name]
    every = [Fault(CLEAN, array, affine, reference), mirrored(array, affine, reference), *rotated]
    found = [scored(segmenter((one.scan, one.affine)), one) for one in every]
    return [one._replace(clean_dice=found[0].dice) for one in found]


if __name__ == "__main__":
    main()
