"""volseg against nnU-Net v2, file to file, with the same weights on the same scans.

    python benchmarks/predict_vs_nnunet.py [--case ct|smooth|folder|model] [--nnunet-python PYTHON] [--append]

ct       the torso at 512 x 512 x 200 voxels with noise, random weights: speckled labels, the worst case for volseg
smooth   the same scan and network; its decoder takes no skip and its kernels are box filters, for smooth labels
folder   60 hippocampus scans, random weights
model    labels of a trained model against those nnU-Net left beside it; nothing is timed

Needs volseg, the data that VOLSEG_DATA names (wild/ct_torso_3mm.nii.gz, Task04_Hippocampus or
nnunet_hippocampus_model) and, but for `model`, a Python that has nnunetv2. nnU-Net runs as its command line does: CPU,
one fold, no mirroring, its own number of processes. Each process is measured from its start; importing the weights is
not measured.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from agreement import compare_model, share_of_boundary, share_of_equal
from machine_peak import peak
from nnunet_cases import Comparison, comparison, windows_of
from sides import Side, as_table, compared, publish, report_side, run_in_turn, run_side
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
    parser.add_argument("--toy", action="store_true", help="small scans and networks, to see that everything works")
    parser.add_argument("--append", action="store_true", help="add the table to RESULTS.md")
    parser.add_argument("--warm", nargs=3, type=Path, metavar=("MODEL", "SCANS", "OUTPUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.warm:
        report_side(warm_work(options.precision, *options.warm), options.repeats)
        return
    command = f"python benchmarks/predict_vs_nnunet.py --case {options.case} --precision {options.precision}"
    if options.case == "model":
        publish("Labels against nnU-Net's", command, compare_model(options.precision), options.append)
        return
    command += f" --repeats {options.repeats} --nnunet-python PYTHON"
    chosen = comparison(options.case, options.toy)
    with tempfile.TemporaryDirectory() as folder:
        text = compare(chosen, options, Path(folder))
    publish(f"Against nnU-Net: {chosen.title}", command, text, options.append)


def compare(chosen: Comparison, options: argparse.Namespace, folder: Path) -> str:
    """Make scans and model, run both sides in turn, and say what came out."""
    entry = nnunet_entry(options.nnunet_python)
    scans, network, model = folder / "scans", folder / "nnunet_model", folder / "model.safetensors"
    outputs = {side: folder / side for side in ("nnU-Net", "volseg")}
    scans.mkdir()
    chosen.write_scans(scans)
    writer = Path(__file__).with_name("nnunet_folder.py")
    subprocess.run([options.nnunet_python, writer, network, json.dumps(asdict(chosen.model))], check=True)
    import_nnunet(network, model)
    commands = {
        "nnU-Net": nnunet_command(entry, scans, network, outputs["nnU-Net"]),
        "volseg": volseg_command(options.precision, scans, model, outputs["volseg"]),
    }
    sides = run_in_turn(commands, options.repeats)
    repeated = [f"--precision={options.precision}", f"--repeats={options.repeats}"]
    warm = run_side([__file__, *repeated, "--warm", model, scans, folder / "warm"])
    table = as_table(compared({**sides, "volseg, warm process": warm}, "nnU-Net"))
    gflop = window_gflop(model) * windows_of(scans, chosen.model)
    notes = [
        f"labels: {share_of_equal(outputs['volseg'], outputs['nnU-Net']):.4%} of all voxels equal; "
        f"{share_of_boundary(outputs['nnU-Net']):.1%} of them have a neighbour of another label",
        stages(sides["volseg"]),
        f"process start: {sides['volseg'].seconds - warm.seconds:.2f} s more than a warm process",
        f"windows: {gflop:,.0f} GFLOP, {gflop / warm.seconds:.1f} GFLOP/s of a warm process' time, "
        + ", ".join(peak_share(gflop / warm.seconds, name) for name in native()),
    ]
    return "\n".join([table, "", *(f"- {note}" for note in notes)])


def nnunet_entry(python: Path) -> Path:
    """nnU-Net's own command, from the same environment as its Python."""
    script = python.parent / "nnUNetv2_predict_from_modelfolder"
    if not script.exists():
        sys.exit(f"There is no {script}. Give --nnunet-python the Python of an environment that has nnunetv2.")
    return script


def nnunet_command(entry: Path, scans: Path, network: Path, output: Path) -> list[str | Path]:
    """nnU-Net's command line with one fold, on the CPU, without mirroring."""
    paths = ["-i", scans, "-o", output, "-m", network]
    return [entry, *paths, "-f", "0", "-device", "cpu", "--disable_tta", "-step_size", "0.5"]


def volseg_command(precision: str, scans: Path, model: Path, output: Path) -> list[str | Path]:
    """The same by volseg's command line."""
    paths = [scans, "--model", model, "--output", output]
    return [sys.executable, "-m", "volseg", "predict", *paths, "--device", "cpu", "--precision", precision,
            "--overwrite", "--json"]  # fmt: skip


def warm_work(precision: str, model: Path, scans: Path, output: Path):
    """File to file with a model that is loaded once."""
    segmenter = Segmenter.load(model, device="cpu", precision=precision)
    output.mkdir()

    def work() -> None:
        for outcome in segmenter.map(sorted(scans.iterdir())):
            outcome.result.save(output / outcome.input.name)

    return work


def stages(side: Side) -> str:
    """Seconds per stage as the records of the last process tell them, all cases together."""
    records = [case for case in json.loads(side.printed)["cases"] if "seconds" in case]
    names = records[0]["seconds"]
    sums = ", ".join(f"{name} {sum(record['seconds'][name] for record in records):.2f} s" for name in names)
    return f"of which, in {records[0]['precision']}: {sums}"


def window_gflop(model: Path) -> float:
    """Of one forward pass of the model on one window, as `FlopCounterMode` counts convolutions."""
    plan = read_card(model).plan
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        UNet(plan.network).eval()(torch.empty(1, len(plan.channels), *plan.patch_size))
    return counter.get_total_flops() / 1e9


def native() -> list[str]:
    """The precisions that this processor computes itself; the peak of an emulated one says nothing."""
    return [name for name, dtype in DTYPES.items() if dtype in (torch.float32, choose_precision("auto", CPU))]


def peak_share(speed: float, precision: str) -> str:
    """A speed in GFLOP/s as a share of what the machine was just measured to reach."""
    most = peak(DTYPES[precision])
    return f"{speed / most:.0%} of the machine's {precision} peak of {most:.0f}"


if __name__ == "__main__":
    main()
