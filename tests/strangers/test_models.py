"""Model files from strangers: each is refused in a sentence, before it takes memory or time."""

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

import volseg.api.describe
import volseg.api.ensemble
import volseg.api.predict  # noqa: F401 - like those above, loaded before the trials are forked
from tests.pipeline import blob, tiny_plan, write_model
from tests.strangers.absurd import NAMES, as_text
from tests.strangers.models import card_in, whole_model, with_card, with_header, with_tensors
from tests.strangers.trials import check_refusal, check_words, command, run
from volseg.config import Label, NetworkConfig
from volseg.errors import InputError
from volseg.modelfile import load_model, read_card, save_model
from volseg.modelfile.header import LARGEST_HEADER, read_header
from volseg.networks import UNet
from volseg.networks.build import outline
from volseg.networks.loading import open_network

STAGES = 200


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A scan and a model."""
    folder = tmp_path_factory.mktemp("stranger")
    scan = folder / "scan.nii"
    nib.save(nib.Nifti1Image(blob((12, 12, 10)), np.diag([2.0, 1.5, 1.5, 1])), scan)
    return scan, whole_model(folder / "whole.safetensors")


def changed(document, place, value):
    """A document with another value at a place such as plan.network.features."""
    *parents, last = place.split(".")
    holder = document
    for key in parents:
        holder = holder[int(key)] if isinstance(holder, list) else holder[key]
    holder[int(last) if isinstance(holder, list) else last] = value
    return document


def long_network(document):
    """A card of many stages, each as it should be."""
    document["plan"]["network"] |= {
        "features": [4] * STAGES, "encoder_blocks": [1] * STAGES, "decoder_blocks": [1] * (STAGES - 1),
        "kernels": [[3, 3, 3]] * STAGES, "strides": [[1, 1, 1]] * STAGES,
    }  # fmt: skip
    return document


CARDS = {
    "members 1e9": ("members", 10**9),
    "members 1e5": ("members", 10**5),
    "members 50": ("members", 50),
    "features 20000": ("plan.network.features", [20_000, 20_000]),
    "features 4000": ("plan.network.features", [4000, 4000]),
    "blocks 1e6": ("plan.network.encoder_blocks", [10**6, 10**6]),
    "patch 1024": ("plan.patch_size", [1024] * 3),
    "patch 1e6": ("plan.patch_size", [10**6] * 3),
    "kernels 999": ("plan.network.kernels", [[999] * 3] * 2),
    "strides 1e6": ("plan.network.strides", [[1, 1, 1], [10**6] * 3]),
    "mid 1e9": ("plan.network.mid", 10**9),
    "spacing": ("plan.spacing_mm", [-1, 1, 0]),
    "spacing 0": ("plan.spacing_mm", [0, 1, 1]),
    "spacing 1e-300": ("plan.spacing_mm", [1e-300, 1, 1]),
    "clip upside down": ("plan.channels.0.clip", [300.0, -100.0]),
    "deviation 0": ("plan.channels.0.std", 0.0),
    "deviation -1": ("plan.channels.0.std", -1.0),
    "mean NaN": ("plan.channels.0.mean", float("nan")),
    "volumes upside down": ("plan.labels.0.volume_ml_range", [2.0, 1.0]),
    "means upside down": ("plan.channels.0.mean_range", [2.0, 1.0]),
    "long name": ("plan.labels.0.name", "x" * 100_000),
    "many labels": ("plan.labels", [{"name": str(value), "value": value} for value in range(1, 60_000)]),
    "parts": ("plan.labels.0.parts", [1] * 60_000),
    "colour": ("plan.labels.0.colour", [10**9, 0, 0]),
    "batch": ("plan.batch_size", 10**18),
    "scores": ("scores", {"out_of_fold": [1]}),
    "member scores": ("scores", {"members": [{"foreground_dice": 1}] * 2}),
    "training": ("training", {"members": 5}),
    "architecture": ("plan.network.architecture", NAMES * 5),
}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_beyond_all_bounds_is_refused(stranger, tmp_path, name):
    scan, model = stranger
    path = with_card(model, as_text(changed(card_in(model), *CARDS[name])), tmp_path / "bad.safetensors")
    check_refusal(run(command("predict", scan, "--model", path, "--output", tmp_path / "out.nii.gz"), tmp_path))
    assert not (tmp_path / "out.nii.gz").exists()


def test_two_hundred_stages_are_refused_in_a_short_sentence(stranger, tmp_path):
    scan, model = stranger
    path = with_card(model, json.dumps(long_network(card_in(model))), tmp_path / "bad.safetensors")
    trial = run(command("predict", scan, "--model", path, "--output", tmp_path / "out.nii.gz"), tmp_path)
    check_refusal(trial)
    assert len(trial.error) < 2000


TEXTS = {
    "nested": "[" * 200_000,
    "nested objects": '{"a":' * 5000 + "1" + "}" * 5000,
    "long integer": '{"schema_version": ' + "9" * 5000 + "}",
    "NaN": '{"schema_version": NaN}',
    "twice": '{"schema_version": 3, "schema_version": 2}',
    "a list": "[3]",
    "version": '{"schema_version": true}',
    "many values": "[" + "1," * 800_000 + "1]",
}


@pytest.mark.parametrize("verb", ["info", "predict"])
@pytest.mark.parametrize("name", TEXTS)
def test_a_document_that_is_no_card_is_refused(stranger, tmp_path, name, verb):
    scan, model = stranger
    path = with_card(model, TEXTS[name], tmp_path / "bad.safetensors")
    arguments = (path,) if verb == "info" else (scan, "--model", path, "--output", tmp_path / "out.nii.gz")
    check_refusal(run(command(verb, *arguments), tmp_path))


TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HEADERS = {
    "98 MB": (b"[" * 98_000_000, None, "at most 8 are read"),
    "nested": (b"[" * 400_000, None, "nested more than"),
    "longer than the file": (b"{}", 2**40, "its first bytes are not those of"),
    "longer than any file": (b"{}", 2**64 - 1, "its first bytes are not those of"),
    "a list": (b"[]", None, "it is no object"),
    "not UTF-8": (b'{"\xff": 1}', None, "byte 2 of its header is not UTF-8"),
    "huge shape": (
        json.dumps({"a": {**TENSOR, "shape": [2**62, 2**62]}}).encode(), None, "its shape needs",
    ),
    "beyond 64 bits": (json.dumps({"a": {**TENSOR, "shape": [2**64]}}).encode(), None, "a.shape.0"),
    "negative": (json.dumps({"a": {**TENSOR, "shape": [-1]}}).encode(), None, "a.shape.0"),
    "outside": (json.dumps({"a": {**TENSOR, "data_offsets": [4, 8]}}).encode(), None, "lies at bytes 4 to 8"),
    "unknown type": (json.dumps({"a": {**TENSOR, "dtype": "X9"}}).encode(), None, "the number type of a is 'X9'"),
    "numbers as texts": (b'{"__metadata__": {"volseg": 5}}', None, "volseg"),
    "many axes": (json.dumps({"a": {**TENSOR, "shape": [1] * 1000}}).encode(), None, "at most 16"),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_is_none_is_refused(tmp_path, name):
    header, length, words = HEADERS[name]
    path = with_header(header, tmp_path / "bad.safetensors", length=length)
    with pytest.raises(InputError, match="is not a model file") as error:
        read_header(path)
    assert words in str(error.value)
    trial = run(command("info", path), tmp_path)
    check_refusal(trial)


@pytest.mark.parametrize("kept", [9, 0.5, -1], ids=["in the header", "in the middle", "last byte"])
def test_a_model_file_that_is_cut_short_is_named_so(tmp_path, kept):
    content = write_model(tmp_path / "m.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(InputError, match=r"cut\.safetensors is cut short: its .* but only \d+ are there"):
        read_header(path)


@pytest.mark.parametrize("begin", [b"PK\x03\x04", b"\x1f\x8b\x08\x00\x00\x00\x00\x00", b"<!DOCTYPE html>"])
def test_another_file_is_not_called_cut_short(tmp_path, begin):
    path = tmp_path / "other.safetensors"
    path.write_bytes(begin.ljust(2000, b"\n"))
    with pytest.raises(InputError, match="is not a model file: its first bytes"):
        read_header(path)


def test_a_header_of_the_largest_size_is_read(tmp_path):
    text = json.dumps({"__metadata__": {"a": "x"}}).encode()
    path = with_header(text.ljust(LARGEST_HEADER), tmp_path / "large.safetensors")
    assert read_header(path).metadata == {"a": "x"}
    with_header(text.ljust(LARGEST_HEADER + 1), path)
    with pytest.raises(InputError, match=r"its header has 8\.0 MiB"):
        read_header(path)


@pytest.mark.parametrize("verb", ["info", "predict", "ensemble", "profile", "node"])
def test_what_a_header_shows_is_refused_before_torch_is_imported(stranger, tmp_path, verb):
    scan, model = stranger
    path = with_card(model, json.dumps(changed(card_in(model), "members", 10**9)), tmp_path / "bad.safetensors")
    (tmp_path / "node.yaml").write_text("rules: [{model: bad.safetensors}]\n")
    arguments = {
        "info": (path,),
        "predict": (scan, "--model", path, "--output", tmp_path / "out.nii.gz"),
        "ensemble": (path, model, "--output", tmp_path / "out.safetensors"),
        "profile": ("--model", path),
        "node": ("--config", tmp_path / "node.yaml"),
    }[verb]
    program = (
        "import sys; from volseg.cli import app\n"
        "try: app(sys.argv[1:], prog_name='volseg')\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, verb, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "less than or equal to 100" in done.stderr
    assert done.stderr.splitlines()[-1] == "False"


def test_weights_that_do_not_fit_take_no_memory(tmp_path):
    """The network of the card has 3 GiB of weights, the file a few bytes."""
    network = NetworkConfig(features=(1000, 4000), classes=3, encoder_blocks=(1, 1), decoder_blocks=(1,))
    path = write_model(tmp_path / "small.safetensors")
    large = with_card(
        path, json.dumps(changed(card_in(path), "plan.network", network.model_dump())), tmp_path / "large.safetensors"
    )
    trial = run(command("predict", tmp_path / "x.nii", "--model", large, "--output", tmp_path / "o.nii"), tmp_path)
    assert trial.code == 2

    def load():
        with pytest.raises(
            InputError, match=r"do not fit its plan: in it .*conv\.weight is 4x1x3x3x3 floating, not 1000"
        ):
            open_network(large)

    loaded = run(load, tmp_path)
    assert (loaded.code, loaded.error) == (0, "")
    assert loaded.grown < 100


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda header: header.update(other=header.pop("heads.0.weight")), "it lacks heads.0.weight"),
        (lambda header: header["heads.0.bias"].update(dtype="I32"), "heads.0.bias is 3 integer, not 3 floating"),
        (lambda header: header["heads.0.bias"].update(dtype="U32"), "heads.0.bias is 3 integer, not 3 floating"),
        (lambda header: header["heads.0.bias"].update(dtype="F16", shape=[6]), "heads.0.bias is 6 floating"),
        (lambda header: header["heads.0.bias"].update(dtype="F8_E4M3", shape=[12]), "has the number type F8_E4M3"),
        (
            lambda header: (
                header.update({NAMES: header["heads.0.bias"]})
                or header.update({NAMES: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}})
            ),
            "it also has",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, words):
    path = write_model(tmp_path / "m.safetensors")
    bad = with_tensors(path, change, tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="do not fit its plan") as error:
        open_network(bad)
    assert words in str(error.value)
    assert str(error.value).isprintable()


def test_complex_weights_are_refused(tmp_path):
    path = write_model(tmp_path / "m.safetensors")
    read_card(path)
    bad = with_tensors(
        path, lambda header: header["heads.0.bias"].update(dtype="C64", shape=[1], data_offsets=[0, 8]), tmp_path / "c"
    )
    with pytest.raises(InputError, match=r"is not a model file|number type C64"):
        open_network(bad)


def test_loaded_weights_are_those_of_the_file_and_do_not_change_with_it(tmp_path):
    path = write_model(tmp_path / "m.safetensors")
    _, network = open_network(path)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    path.write_bytes(bytes(path.stat().st_size))
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert not any(one.is_meta or one.requires_grad for one in network.parameters())
    assert all(one.abs().sum() > 0 for name, one in state.items() if name.endswith("conv.weight"))


@pytest.mark.parametrize("norm", ["instance", "batch", "group", "none"])
@pytest.mark.parametrize("encoder", ["plain", "residual"])
@pytest.mark.parametrize("block", ["conv3d", "conv2plus1d"])
def test_an_outline_has_the_names_and_shapes_of_the_network_and_no_memory(norm, encoder, block):
    config = NetworkConfig(features=(4, 8, 8), norm=norm, encoder=encoder, block=block)
    real, lines = UNet(config).state_dict(), outline(config).state_dict()
    assert {name: (one.shape, one.dtype) for name, one in real.items()} == {
        name: (one.shape, one.dtype) for name, one in lines.items()
    }
    assert all(one.is_meta for one in lines.values())


def test_names_reach_no_terminal_as_they_are(tmp_path):
    """Titles, colours, the clipboard and the direction of writing are set by characters that are not printed."""
    labels = (Label(name=NAMES, value=1), Label(name=f"b{NAMES}", value=2))
    path = write_model(tmp_path / "named.safetensors", tiny_plan(labels=labels, dataset=NAMES))
    scan = tmp_path / f"s{NAMES.replace('/', '_')}.nii"
    nib.save(nib.Nifti1Image(blob((12, 12, 10)), np.diag([2.0, 1.5, 1.5, 1])), scan)
    trial = run(command("info", path), tmp_path)
    check_words(trial)
    assert "\\x1b]0;title" in trial.output
    before = set(tmp_path.rglob("*"))
    output = tmp_path / "out"
    options = ("--output", output / "a.nii.gz", "--preview", "--probabilities")
    trial = run(command("predict", scan, "--model", path, *options), tmp_path)
    check_words(trial._replace(error=trial.error[:2000]))
    assert trial.code == 0, trial.error
    created = set(tmp_path.rglob("*")) - before
    assert {path.parent for path in created} == {tmp_path, output}


@pytest.mark.parametrize(
    "network",
    [
        NetworkConfig(
            encoder="residual", classes=118, features=(32, 64, 128, 256, 320, 320, 320, 320, 320),
            encoder_blocks=(1, 3, 4, 6, 6, 6, 6, 6, 6), decoder_blocks=(1,) * 8, kernels=((3, 3, 3),) * 9,
            strides=((1, 1, 1), *((2, 2, 2),) * 5, *((1, 1, 1),) * 3),
        ),
        NetworkConfig(features=(32, 64, 128, 256, 512, 512, 512), encoder="residual", encoder_blocks=(8,) * 7),
        NetworkConfig(features=(64, 128, 256, 512, 1024), in_channels=20, classes=1001, block="conv2plus1d"),
    ],
)  # fmt: skip
def test_the_largest_real_networks_are_within_the_bounds(network):
    labels = tuple(Label(name=str(value), value=value) for value in range(1, network.classes))
    channels = tiny_plan().channels * network.in_channels
    plan = tiny_plan(network=network, labels=labels, channels=channels, patch_size=(256, 256, 256), batch_size=100)
    assert plan.network == network


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("training.name", 5),
        ("training.fold", [1]),
        ("scores.labels", {"other": {"dice": None, "cases": 3}}),
        ("scores.labels.ball", {"dice": None, "cases": 3}),
        ("plan.dataset", "x" * 500),
    ],
)
def test_an_odd_record_ends_no_ensemble_with_a_traceback(stranger, tmp_path, place, value):
    _, model = stranger
    paths = []
    for fold in range(2):
        card = changed(card_in(model), "training.fold", fold)
        text = json.dumps(changed(card, place, value) if fold or place.startswith("plan") else card)
        paths.append(with_card(model, text, tmp_path / f"{fold}.safetensors"))
    trial = run(command("ensemble", *paths, "--output", tmp_path / "both.safetensors"), tmp_path)
    assert trial.code in (0, 2), trial.error
    check_words(trial)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_refused(tmp_path, value):
    path = write_model(tmp_path / "a.safetensors")
    card, weights = load_model(path)
    changed_weights = {name: tensor.clone() for name, tensor in weights.items()}
    name = next(iter(changed_weights))
    changed_weights[name].reshape(-1)[-1] = value
    save_model(tmp_path / "b.safetensors", card, changed_weights)
    with pytest.raises(InputError, match="not finite") as caught:
        open_network(tmp_path / "b.safetensors")
    assert name in str(caught.value)


def test_members_without_scores_are_described(stranger, tmp_path):
    _, model = stranger
    for place in ("training.members", "scores.members"):
        text = json.dumps(changed(card_in(model), place, [{"name": "a"}]))
        trial = run(command("info", with_card(model, text, tmp_path / "a.safetensors")), tmp_path)
        assert trial.code == 0, trial.error
        check_words(trial)
