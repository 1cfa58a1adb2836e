"""volseg against nnU-Net v2, file to file, with the same weights on the same scans.

    python benchmarks/predict_vs_nnunet.py [--case ct|smooth|folder|model] [--nnunet-python PYTHON] [--record]

ct       the torso at 512 x 512 x 200 voxels with noise, random weights: speckled labels, the worst case for volseg
smooth   the same scan and network, without skip connections and with box filters in the decoder, for smooth labels
folder   60 hippocampus scans, random weights
model    labels of a trained model against nnU-Net's stored labels; nothing is timed

Needs volseg, the folder of data in VOLSEG_DATA (wild/ct_torso_3mm.nii.gz, Task04_Hippocampus or
nnunet_hippocampus_model) and, except for `model`, a Python that has nnunetv2. nnU-Net runs by its command line: CPU,
one fold, no test-time augmentation, its default number of processes. Each process is measured from its start;
importing the weights is not measured.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from common.record import publish, record_options
from common.results import headline, ratio, rounded, table
from common.sides import Side, compared, report_side, run_in_turn, run_side
from machine_peak import peak
from nnunet.agreement import boundary_fraction, compare_model, equal_voxels
from nnunet.cases import Comparison, comparison, windows_of
from torch.utils.flop_counter import FlopCounterMode

from volseg import Segmenter
from volseg.api.importing import import_nnunet
from volseg.modelfile import read_card
from volseg.networks import UNet
from volseg.precision import DTYPES, choose_precision

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=["ct", "smooth", "folder", "model"], default="ct")
    parser.add_argument("--nnunet-python", type=Path, default=Path(sys.executable), help="a Python that has nnunetv2")
    parser.add_argument("--precision", choices=["auto", *DTYPES], default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--toy", action="store_true", help="small scans and networks, for a quick check")
    record_options(parser)
    parser.add_argument("--warm", nargs=3, type=Path, metavar=("MODEL", "SCANS", "OUTPUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.warm:
        report_side(warm_work(options.precision, *options.warm), options.repeats)
        return
    if options.case == "model":
        tables = compare_model(options.precision)
        heads = [headline("trained nnU-Net model", row["precision"], "voxels that differ") for row in tables[0]["rows"]]
        publish(options, "predict-labels", "Labels of a trained nnU-Net model against nnU-Net's own", tables, heads)
        return
    chosen = comparison(options.case, options.toy)
    with tempfile.TemporaryDirectory() as folder:
        tables = compare(chosen, options, Path(folder))
    heads = [headline(f"{chosen.title}, file to file", "volseg", column) for column in ("seconds", "peak GiB")]
    note = f"volseg computes in {tables[2]['rows'][0]['precision']}, nnU-Net in fp32."
    publish(options, f"predict-{options.case}", f"Prediction against nnU-Net: {chosen.title}", tables, heads, note)


def compare(chosen: Comparison, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Make scans and model and run both sides in turn; tables of times, labels, stages and arithmetic."""
    entry = nnunet_entry(options.nnunet_python)
    scans, network, model = folder / "scans", folder / "nnunet_model", folder / "model.safetensors"
    outputs = {side: folder / side for side in ("nnU-Net", "volseg")}
    scans.mkdir()
    chosen.write_scans(scans)
    writer = Path(__file__).parent / "nnunet" / "write_folder.py"
    subprocess.run([options.nnunet_python, writer, network, json.dumps(asdict(chosen.model))], check=True)
    import_nnunet(network, model)
    commands = {
        "nnU-Net": nnunet_command(entry, scans, network, outputs["nnU-Net"]),
        "volseg": volseg_command(options.precision, scans, model, outputs["volseg"]),
    }
    sides = run_in_turn(commands, options.repeats)
    repeated = [f"--precision={options.precision}", f"--repeats={options.repeats}"]
    warm = run_side([__file__, *repeated, "--warm", model, scans, folder / "warm"])
    equal, voxels = equal_voxels(outputs["volseg"], outputs["nnU-Net"])
    labels = {"volseg against nnU-Net": "all scans", "voxels": voxels, "voxels that differ": voxels - equal}
    labels["voxels at a boundary between labels, %"] = rounded(100 * boundary_fraction(outputs["nnU-Net"]))
    gflop = window_gflop(model) * windows_of(scans, chosen.model)
    return [
        compared({**sides, "volseg, warm process": warm}, "nnU-Net"),
        table([labels], [ratio("fraction equal", "voxels that differ", over="voxels")], "Labels"),
        stages(sides["volseg"], warm),
        arithmetic(gflop, warm),
    ]


def nnunet_entry(python: Path) -> Path:
    """nnU-Net's own command, from the same environment as its Python."""
    script = python.parent / "nnUNetv2_predict_from_modelfolder"
    if not script.exists():
        sys.exit(f"No such file: {script}. Give --nnunet-python the Python of an environment that has nnunetv2.")
    return script


def nnunet_command(entry: Path, scans: Path, network: Path, output: Path) -> list[str | Path]:
    """nnU-Net's command line with one fold, on the CPU, without test-time augmentation."""
    paths = ["-i", scans, "-o", output, "-m", network]
    return [entry, *paths, "-f", "0", "-device", "cpu", "--disable_tta", "-step_size", "0.5"]


def volseg_command(precision: str, scans: Path, model: Path, output: Path) -> list[str | Path]:
    """The same by volseg's command line."""
    paths = [scans, "--model", model, "--output", output]
    return [sys.executable, "-m", "volseg", "predict", *paths, "--device", "cpu", "--precision", precision,
            "--overwrite", "--json"]  # fmt: skip


def warm_work(precision: str, model: Path, scans: Path, output: Path):
    """Prediction file to file with a model that is loaded once."""
    segmenter = Segmenter.load(model, device="cpu", precision=precision)
    output.mkdir()

    def work() -> None:
        for outcome in segmenter.map(sorted(scans.iterdir())):
            outcome.result.save(output / outcome.input.name)

    return work


def stages(side: Side, warm: Side) -> dict[str, Any]:
    """Seconds per stage as the JSON reports of the last process tell them, all cases together."""
    reports = [case for case in json.loads(side.printed)["cases"] if "seconds" in case]
    sums = {name: rounded(sum(one["seconds"][name] for one in reports)) for name in reports[0]["seconds"]}
    row = {"precision": reports[0]["precision"], **sums, "process start": rounded(side.seconds - warm.seconds)}
    return table([row], caption="Seconds per stage, all scans together")


def arithmetic(gflop: float, warm: Side) -> dict[str, Any]:
    """The speed of the windows in a warm process against what the machine was just measured to reach."""
    speed = "GFLOP/s in a warm process"
    rows = [
        {"peak of": name, "GFLOP in windows": round(gflop), speed: rounded(gflop / warm.seconds),
         "peak GFLOP/s": rounded(peak(DTYPES[name]))}
        for name in native()
    ]  # fmt: skip
    return table(rows, [ratio("fraction of peak", speed, over="peak GFLOP/s")], "Arithmetic")


def window_gflop(model: Path) -> float:
    """GFLOP of the convolutions in one forward pass on one window, as `FlopCounterMode` counts them."""
    plan = read_card(model).plan
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        UNet(plan.network).eval()(torch.empty(1, len(plan.channels), *plan.patch_size))
    return counter.get_total_flops() / 1e9


def native() -> list[str]:
    """The precisions that this processor computes natively; the peak of an emulated one says nothing."""
    return [name for name, dtype in DTYPES.items() if dtype in (torch.float32, choose_precision("auto", CPU))]


if __name__ == "__main__":
    main()
