"""Two processes that write the same results, results without their record, and what killed processes left."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.faults.client import Server
from tests.faults.scenes import PREDICT, SCENES, Stage, state_of
from tests.pipeline import environment
from volseg.data.io.inputs import claimed
from volseg.errors import UsageError
from volseg.files import finish_files, whole_files

HOLD = """
import sys
from pathlib import Path
from volseg.data.io.inputs import claimed
with claimed([Path(path) for path in sys.argv[1:]]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def stage(server, tmp_path_factory):
    return Stage(SCENES["predict"], tmp_path_factory.mktemp("predict"), server)


def hold(*paths):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, *paths], stdin=-1, stdout=-1, text=True, env=environment())
    assert holder.stdout.readline() == "held\n"
    return holder


def end(holder, kill=False):
    if kill:
        holder.kill()
    holder.stdin.close()
    holder.wait()
    holder.stdout.close()


def test_a_claim_keeps_the_same_results_from_others_and_leaves_nothing(tmp_path):
    one, two, three = (tmp_path / "out" / f"{name}.nii.gz" for name in ("one", "two", "three"))
    holder = hold(one, two)
    said = r"Another process is writing two\.nii\.gz into .*out\. Wait for it"
    with pytest.raises(UsageError, match=said), claimed([two, three]):
        pytest.fail("two processes write the same result")
    with claimed([three]):
        three.write_text("another result in the same folder")
    end(holder)
    with claimed([one, two]):
        pass
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["three.nii.gz"]


def test_the_claim_and_the_leftovers_of_a_killed_process_go(tmp_path):
    one, other = tmp_path / "one.nii.gz", tmp_path / "other.nii.gz"
    end(hold(one), kill=True)
    (tmp_path / ".01234567.tmp.one.nii.gz").mkdir()
    (tmp_path / ".01234567.tmp.one.nii.gz" / "one.json").write_text("half")
    (tmp_path / ".01234567.tmp..89abcdef.tmp.one.probabilities.npy").write_text("half")
    (tmp_path / ".01234567.tmp.other.nii.gz").write_text("of a process that may live")
    assert len(list(tmp_path.iterdir())) == 5
    with claimed([one], (".probabilities.npy",)):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [f".01234567.tmp.{other.name}"]


def test_two_claims_in_one_process_conflict_as_well(tmp_path):
    with claimed([tmp_path / "one.nii.gz"]):
        second = claimed([tmp_path / "one.nii.gz"])
        with pytest.raises(UsageError):
            second.__enter__()
    assert list(tmp_path.iterdir()) == []


def test_of_two_predicts_into_one_folder_one_wins_and_the_other_says_so(shim, stage):
    stage.clear()
    with Server(shim) as other, ThreadPoolExecutor(2) as pool:
        arguments = [word.replace("../inputs", str(stage.root / "inputs")) for word in PREDICT]
        ends = list(pool.map(lambda server: server.run(arguments, stage.trial), (stage.server, other)))
    assert sorted(one.code for one in ends) == [0, 2]
    said = next(one.stderr for one in ends if one.code == 2)
    assert "Another process" in said or "exist already" in said
    assert state_of(stage.trial) == stage.after


@pytest.mark.parametrize("name", ["one.json", "two.json"])
def test_a_label_image_without_its_record_is_not_done(stage, name):
    stage.clear()
    stage.must_end_well(PREDICT)
    (stage.trial / "out" / name).unlink()
    stage.must_end_well((*PREDICT, "--skip-existing"))
    assert state_of(stage.trial) == stage.after


def test_a_label_image_of_someone_else_without_a_record_is_kept(stage):
    stage.clear()
    stage.must_end_well(PREDICT)
    (stage.trial / "out" / "one.json").unlink()
    theirs = (stage.trial / "out" / "two.nii.gz").read_bytes()
    (stage.trial / "out" / "one.nii.gz").write_bytes(theirs)
    ended = stage.must_end_well((*PREDICT, "--skip-existing"))
    kept = list((stage.trial / "out").glob("one.nii.gz.*.kept"))
    assert [path.read_bytes() for path in kept] == [theirs]
    assert kept[0].name in ended.stderr
    kept[0].unlink()
    assert state_of(stage.trial) == stage.after


def test_a_record_without_its_label_image_is_no_obstacle(stage):
    stage.clear()
    stage.must_end_well(PREDICT)
    (stage.trial / "out" / "one.nii.gz").unlink()
    stage.must_end_well((*PREDICT, "--skip-existing"))
    assert state_of(stage.trial) == stage.after


def write_set(folder, text, fail=False):
    with whole_files(folder, "last") as temporary:
        for name in ("first", "last"):
            (temporary / name).write_text(text)
        if fail:
            raise UsageError("no")


KILLED = """
import os, signal, sys
from pathlib import Path
from volseg import files
real, moved = os.replace, []
def replace(source, target):
    if moved:
        os.kill(os.getpid(), signal.SIGKILL)
    if Path(target).name in ("first", "last") and Path(target).parent == Path(sys.argv[1]):
        moved.append(target)
    real(source, target)
os.replace = replace
with files.whole_files(Path(sys.argv[1]), "last") as temporary:
    for name in ("first", "last"):
        (temporary / name).write_text("new")
"""


def test_a_set_that_was_complete_takes_its_places_after_a_kill(tmp_path):
    write_set(tmp_path, "old")
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path], env=environment()).returncode == -9
    assert [(tmp_path / name).read_text() for name in ("first", "last")] == ["new", "old"]
    finish_files(tmp_path, ["last"])
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"first": "new", "last": "new"}


def test_a_set_that_fails_changes_nothing(tmp_path):
    write_set(tmp_path, "old")
    with pytest.raises(UsageError):
        write_set(tmp_path, "new", fail=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"first": "old", "last": "old"}
