"""Run folders and caches that are damaged, or come from someone else: mended, or one sentence; no victim of a link."""

import json
import os
import shutil
import time

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.pipeline import TINY, leftovers, same_weights
from volseg import train
from volseg.errors import VolsegError
from volseg.training.run.folder import lock_run_folder

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = {"device": "cpu", "overrides": (*TINY, "training.workers=0", "training.validations=1")}
STEPS = 6


@pytest.fixture(scope="module")
def whole(phantoms, tmp_path_factory):
    """The weights of a run that nothing disturbed."""
    run = train(phantoms, tmp_path_factory.mktemp("whole") / "run", steps=STEPS, **SETTINGS)
    return run / "model.safetensors"


@pytest.fixture(scope="module")
def begun(phantoms, tmp_path_factory):
    """A run that was stopped after its third step."""
    run = tmp_path_factory.mktemp("begun") / "run"

    def stop(stage, done, text):
        if text.startswith("step 3,"):
            os.kill(os.getpid(), 2)

    with pytest.raises(KeyboardInterrupt, match="checkpoint saved"):
        train(phantoms, run, steps=STEPS, progress=stop, **SETTINGS)
    return run


@pytest.fixture
def run(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "run", symlinks=True)


def resume(phantoms, run, **options):
    return train(phantoms, run, resume=True, device="cpu", **options) / "model.safetensors"


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def link(path):
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


DAMAGES = {
    "a bit": flip,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "garbage": lambda path: path.write_bytes(np.random.default_rng(0).bytes(3000)),
    "object": lambda path: path.write_text("{}"),
    "nested": lambda path: path.write_text("[" * 100_000),
    "removed": os.unlink,
    "link": link,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_files_of_the_cache_are_made_again(phantoms, run, whole, damage):
    # Of each case another kind of file.
    files = [sorted(run.glob(f"cache/*{ending}"))[number] for number, ending in enumerate(
        ("image.blocks", "label.blocks", "foreground.blocks", "json"))]  # fmt: skip
    content = {path: path.read_bytes() for path in files}
    for path in files:
        damage(path)
    assert same_weights(resume(phantoms, run), whole)
    if damage is not flip:
        assert {path: path.read_bytes() for path in files} == content
    assert not any(path.is_symlink() for path in files)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["a bit", "emptied", "removed"])
def test_files_that_are_damaged_while_a_run_reads_them_are_made_again(phantoms, tmp_path, whole, damage, workers):
    overrides = (*SETTINGS["overrides"], f"training.workers={workers}")

    def hurt(stage, done, text):
        if text.startswith("step 2,"):
            for path in (tmp_path / "run" / "cache").glob("*.blocks"):
                DAMAGES[damage](path)

    run = train(phantoms, tmp_path / "run", steps=STEPS, device="cpu", overrides=overrides, progress=hurt)
    assert same_weights(run / "model.safetensors", whole)
    if workers == 0:
        assert "in the cache is damaged" in (run / "log.txt").read_text()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_case_that_is_gone_when_it_has_to_be_prepared_again_is_named(phantoms, tmp_path, workers):
    data = shutil.copytree(phantoms, tmp_path / "data")
    overrides = (*SETTINGS["overrides"], f"training.workers={workers}")

    def hurt(stage, done, text):
        if text.startswith("step 2,"):
            for path in (*(tmp_path / "run" / "cache").iterdir(), *(data / "labelsTr").iterdir()):
                path.unlink()

    with pytest.raises(VolsegError, match=r"^Case phantom_\d+: could not read .* Restore the file\.$"):
        train(data, tmp_path / "run", steps=40, device="cpu", overrides=overrides, progress=hurt)


def test_old_leftovers_in_a_cache_are_removed_and_young_ones_are_not(phantoms, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir()
    old, young, other = (cache / name for name in (".0a1b2c3d.tmp.x.image.blocks", ".4a5b6c7d.tmp.x", "mine.txt"))
    for path in (old, young, other):
        path.write_bytes(b"half")
        age = time.time() - (2 if path == young else 25) * 3600
        os.utime(path, (age, age))
    monkeypatch.setenv("VOLSEG_CACHE", str(cache))
    train(phantoms, tmp_path / "run", steps=1, **SETTINGS)
    assert [path.exists() for path in (old, young, other)] == [False, True, True]


def test_a_cache_and_label_images_on_another_disk_are_used_through_links(phantoms, run, whole, tmp_path):
    scratch = tmp_path / "scratch"
    (run / "cache").rename(scratch)
    (run / "cache").symlink_to(scratch)
    for path in scratch.iterdir():
        path.unlink()
    labels = tmp_path / "labels"
    labels.mkdir()
    (run / "validation").symlink_to(labels)
    (labels / "mine.txt").write_text("of another")
    assert same_weights(resume(phantoms, run), whole)
    assert len(list(scratch.iterdir())) == 5 * 4
    assert len(list(labels.glob("*.nii.gz"))) == 1
    train(phantoms, run, steps=1, overwrite=True, **SETTINGS)
    assert (run / "cache").is_symlink()
    assert (labels / "mine.txt").exists()


@pytest.mark.parametrize("name", [".lock", "log.txt", "metrics.jsonl", "checkpoint"])
@pytest.mark.parametrize("way", ["resume", "overwrite"])
def test_nothing_is_written_through_a_link_in_a_run_folder(phantoms, run, tmp_path, name, way):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    if name == "checkpoint":
        victim = (run / name).rename(tmp_path / "elsewhere")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(victim)
    before = victim.read_bytes() if victim.is_file() else sorted(path.read_bytes() for path in victim.iterdir())
    with pytest.raises(VolsegError, match="is a link, which may lead anywhere"):
        train(phantoms, run, device="cpu", **{way: True})
    assert before == (
        victim.read_bytes() if victim.is_file() else sorted(path.read_bytes() for path in victim.iterdir())
    )


def test_files_that_are_replaced_whole_leave_the_target_of_a_link_alone(phantoms, run, tmp_path):
    victims = {}
    for name in ("plan.yaml", "settings.yaml", "splits.json", "model.safetensors", "validation.json", "report.html"):
        victim = tmp_path / name
        victims[victim] = (run / name).read_bytes() if (run / name).exists() else b"precious"
        victim.write_bytes(victims[victim])
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(victim)
    resume(phantoms, run, steps=5)
    train(phantoms, run, steps=1, overwrite=True, **SETTINGS)
    assert {victim: victim.read_bytes() for victim in victims} == victims


@pytest.mark.parametrize("name", [".lock", "log.txt", "metrics.jsonl", "settings.yaml", "config.yaml", "splits.json"])
def test_a_pipe_in_a_run_folder_is_not_waited_for(phantoms, run, name):
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(VolsegError, match="is not a file"):
        resume(phantoms, run)


@pytest.mark.parametrize("name", ["plan.yaml", "config.yaml", "settings.yaml", "splits.json"])
@pytest.mark.parametrize("damage", ["cut", "emptied", "garbage", "object", "removed"])
def test_damaged_documents_of_a_run_are_one_sentence(phantoms, run, whole, name, damage):
    DAMAGES[damage](run / name)
    resumed, message = None, ""
    try:
        resumed = resume(phantoms, run)
    except VolsegError as error:
        message = str(error)
    if resumed is None:
        # The file, or the folder without its mark, is named.
        assert str(run) in message
        assert len(message) < 600
    else:
        # Without its mark, or its plan, the run starts again; what is cut off may be a default.
        assert (name, damage) == ("plan.yaml", "removed") or same_weights(resumed, whole)
    assert not leftovers(run)


LINES = (
    "garbage", "{}", "[1]", "null", '{"step": "x"}', '{"step": 1}', '{"step": 1, "seconds": NaN, "progress": 0}',
    "[" * 100_000, '{"step": ' + "9" * 5000 + "}",
    '{"step": 2, "seconds": 1, "progress": 0.1, "loss": "x", "learning_rate": 1}',
    '{"step": 2, "seconds": 1, "progress": 0.1, "loss": 1, "learning_rate": 1, "dice": [1]}',
    '{"step": 2, "seconds": 1, "progress": 0.1, "loss": 1, "learning_rate": 1, "dice": {"ball": "x"}}',
)  # fmt: skip


def test_lines_that_are_no_metrics_are_left_out(phantoms, run, whole):
    path = run / "metrics.jsonl"
    path.write_bytes("".join(f"{line}\n" for line in LINES).encode() + b"\xff\xfe\n" + path.read_bytes() + b'{"half')
    assert same_weights(resume(phantoms, run), whole)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]


def changed(run, tensors=None, **header):
    """Write the checkpoint again with other tensors and another header, as if its writer had had them."""
    path = run / "checkpoint" / "state.safetensors"
    with safe_open(path, "np") as handle:
        document = json.loads(handle.metadata()["state"])
    document.pop("crc32")
    save_file({**load_file(path), **(tensors or {})}, path, {"state": json.dumps({**document, **header})})


def odd_moments(run):
    name = next(name for name in load_file(run / "checkpoint" / "state.safetensors") if name.endswith("momentum"))
    changed(run, {name: torch.zeros(3)})


CHECKPOINTS = {
    "seconds": lambda run: changed(run, seconds="x"),
    "infinite seconds": lambda run: changed(run, seconds=float("inf")),
    "step": lambda run: changed(run, step=None),
    "negative step": lambda run: changed(run, step=-1),
    "fractional step": lambda run: changed(run, step=1.5),
    "moments of another shape": odd_moments,
    "odd name": lambda run: changed(run, {"optimizer.odd": torch.zeros(1)}),
    "number": lambda run: changed(run, {"optimizer.999.step": torch.zeros(())}),
    "negative number": lambda run: changed(run, {"optimizer.-1.step": torch.zeros(())}),
    "moment": lambda run: changed(run, {"optimizer.0.odd": torch.zeros(1)}),
    "weight": lambda run: changed(run, {"network.odd": torch.zeros(1)}),
    "document": lambda run: save_file({}, run / "checkpoint" / "state.safetensors", {"state": "[1, 2]"}),
    "no document": lambda run: save_file({}, run / "checkpoint" / "state.safetensors"),
    **{name: lambda run, name=name: DAMAGES[name](run / "checkpoint" / "state.safetensors") for name in (
        "a bit", "cut", "emptied", "garbage", "object")},
}  # fmt: skip


@pytest.mark.parametrize("change", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_an_odd_or_damaged_checkpoint_is_one_sentence(phantoms, run, change):
    change(run)
    with pytest.raises(VolsegError, match=r"^The checkpoint .* does not fit this run: .* Start again with --overwrite"):
        resume(phantoms, run)


def test_a_second_process_says_at_once_that_another_trains(phantoms, run):
    started = time.monotonic()
    with lock_run_folder(run), pytest.raises(VolsegError, match="Another process is training"):
        resume(phantoms, run)
    assert time.monotonic() - started < 5
