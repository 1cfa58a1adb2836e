"""One trial: the fault, what must hold right after it, and that the next command ends as if nothing had happened."""

import errno
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.client import Call, Ended, Fault
from tests.faults.scenes import Stage, state_of

ERRNOS = (errno.ENOSPC, errno.EIO, errno.EACCES)
# The errors that calls can really give besides EIO, as in shim.c.
POSSIBLE = {
    "open+": ERRNOS, "open": (errno.EIO, errno.EACCES), "rename": ERRNOS, "mkdir": ERRNOS,
    "unlink": (errno.EIO, errno.EACCES), **dict.fromkeys(("write", "fsync", "close", "fallocate"), ERRNOS[:2]),
}  # fmt: skip
TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.tmp\.")
# A decided set of files that takes its places when the next command runs.
DECIDED = re.compile(r"\.[0-9a-f]{8}\.tmp\.ready/")
# Files of a run that change while it goes on; they are compared when it is complete.
GROWING = re.compile(r"(^|/)run/(metrics\.jsonl|checkpoint/|validation/)")


@dataclass(frozen=True)
class Trial:
    """A trial that was run: the fault, the call that it hit, how the command ended and what was wrong."""

    scene: str
    fault: Fault
    call: Call | None
    code: int | None
    problems: tuple[str, ...]
    stderr: str

    def __str__(self) -> str:
        hit = f"{self.call.name} {self.call.path}" if self.call else f"after {self.fault.seconds} s"
        kind = errno.errorcode.get(self.fault.errno, "")
        return (
            f"{self.scene}: {self.fault.mode} {kind} at {self.fault.at} ({hit}): exit {self.code}: "
            f"{'; '.join(self.problems)}\n{self.stderr[-1500:]}"
        )


def faults_at(number: int, call: Call) -> Iterator[Fault]:
    """All faults at a call of the undisturbed command."""
    for error in POSSIBLE.get(call.name, (errno.EIO,)):
        yield Fault("fail", number, error)
    if call.name in ("open+", "write", "mkdir"):
        yield Fault("sticky", number, errno.ENOSPC)


def kills_at(number: int, call: Call) -> Iterator[Fault]:
    """All kills at a call."""
    yield Fault("kill", number)
    if call.name == "write":
        yield Fault("torn", number)


def run_trial(stage: Stage, fault: Fault) -> Trial:
    """Run the command with a fault, look at what it left, and go on undisturbed."""
    stage.clear()
    ended = stage.run(stage.scene.arguments, fault)
    call = ended.calls[fault.at - 1] if 0 < fault.at <= len(ended.calls) else None
    problems = [*_about_exit(stage, ended, fault), *_about_files(stage, ended, fault, call)]
    again = stage.run(stage.scene.again)
    problems += _about_going_on(stage, again)
    seen = ended.stderr + (f"\n--- then: {again.code}\n{again.stderr}" if problems else "")
    return Trial(stage.scene.name, fault, call, ended.code, tuple(problems), seen)


def _about_exit(stage: Stage, ended: Ended, fault: Fault) -> Iterator[str]:
    """The exit code and the sentence."""
    if ended.code is None:
        yield "it hung"
    if "Traceback" in ended.stderr or "Exception ignored" in ended.stderr:
        yield "a traceback"
    if fault.mode in ("kill", "torn") or fault.seconds is not None:
        if ended.code not in (-9, 0):
            yield f"a kill ended with {ended.code}"
        return
    if ended.code not in (0, 1, 2, 3):
        yield f"exit code {ended.code}"
    elif ended.code and not re.search(r"^Error: .+\S", ended.stderr, re.MULTILINE):
        yield "no sentence that begins with Error"


def _about_files(stage: Stage, ended: Ended, fault: Fault, call: Call | None) -> Iterator[str]:
    """The old state or the new one, whole, of all files that belong together; nothing else."""
    found, before, after = state_of(stage.trial), stage.before, stage.after
    if ended.code != 0:
        found, before, after = (
            {path: one[path] for path in one if not GROWING.search(path)} for one in (found, before, after)
        )
    decided = any(DECIDED.search(path) for path in found)
    for unit in sorted({unit_of(path) for path in (*before, *after)}):
        now, old, new = (_of_unit(state, unit) for state in (found, before, after))
        wrong = [path for path in now if now[path] not in (old.get(path), new.get(path))]
        if wrong:
            yield f"neither old nor new: {', '.join(wrong)}"
        elif now not in (old, new) and not (
            (ended.code == -9 and (decided or _is_begun(now, old, new))) or _is_removed(stage.scene.replaced, now, old)
        ):
            yield f"{unit} is half old and half new: {', '.join(now)}"
        if ended.code == 0 and now != new:
            yield f"exit code 0 without the result {unit}"
    left = [path for path in found if path not in before and path not in after]
    named = [path for path in left if not TEMPORARY.search(path)]
    if named:
        yield f"unknown files: {', '.join(named)}"
    stuck = call is not None and (call.name in ("unlink", "rename") or fault.mode == "sticky")
    stuck = stuck or (call is not None and call.name == "open" and Path(call.path).is_dir())
    if ended.code != -9 and not stuck:
        if left:
            yield f"left behind: {', '.join(left)}"
        if remains := sorted(path.name for path in (stage.trial / "tmp").iterdir()):
            yield f"left in the temporary folder: {', '.join(remains)}"


def _is_begun(now: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether some files of a run that goes on are there, and none that makes it look complete."""
    return (
        not old and "model.safetensors" not in {Path(path).name for path in now} and any("settings" in p for p in new)
    )


def _is_removed(replaced: str, now: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """Whether files that the command removes before it makes new ones are removed, or some of them."""
    return bool(replaced) and all(re.search(replaced, path) for path in old) and now.items() <= old.items()


def _about_going_on(stage: Stage, again: Ended) -> Iterator[str]:
    """The command that goes on ends as an undisturbed one."""
    done = again.code == 2 and stage.scene.complete in again.stderr
    if again.code != 0 and not done:
        yield f"going on ended with {again.code}"
    found = state_of(stage.trial)
    if different := [path for path, content in stage.after.items() if found.get(path) != content]:
        yield f"after going on these differ: {', '.join(different)}"
    left = [path for path in found if path not in stage.after]
    if named := [path for path in left if stage.scene.resumes or not TEMPORARY.search(path)]:
        yield f"after going on these are left: {', '.join(named)}"


def unit_of(path: str) -> str:
    """The name of the files that belong together: those of a case, of a report."""
    whole = Path(path)
    return str(whole.parent / whole.name.split(".")[0])


def _of_unit(state: Mapping[str, Any], unit: str) -> dict[str, Any]:
    named = {path: content for path, content in state.items() if not TEMPORARY.search(path)}
    return {path: content for path, content in named.items() if unit_of(path) == unit}
