"""The checkpoints of one training run: complete ones only, and none of another run.

`plan.json` identifies the training run and holds what it chose by itself, once for all its
attempts. Each `checkpoint-N` holds what HF Trainer writes, and `complete.json` with the sha256 of
each of these files, written last. A checkpoint without that file, or with a file that differs from
it, was being written (or removed) when the process died, and counts as absent.
"""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from tasks.records import FileRecord, Record, TrainingPlan
from tasks.runtime.atomic_files import sync, write_atomically, writing

log = logging.getLogger(__name__)

PREFIX = "checkpoint-"
_MANIFEST = "complete.json"
_PLAN = "plan.json"


class Kept(Record):
    """State of a training run that Trainer 5.23 does not keep in its checkpoints."""

    seconds_training: float = 0.0
    """Seconds spent on the steps so far, over all attempts that led to them."""
    unlogged_loss: float = 0.0
    """Sum of the losses of the steps since the last logged one, in nats."""
    last_logged_step: int = 0
    is_evaluation_due: bool = False
    """Whether the training was stopped before, or in, the evaluation that follows the step."""
    num_processes: int = 1
    """Those that trained; each has its random state in a file."""
    unlogged_measures: tuple[float, ...] = ()
    """Sums of what is measured beside the loss since the last log, where the objective measures."""
    num_unlogged_items: int = 0
    """That these are the sums of."""


class _Manifest(Record):
    kept: Kept
    files: tuple[FileRecord, ...]


class Checkpoints:
    """The checkpoints in a folder, and the plan of the run that they belong to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def plan(self, made_for: str) -> TrainingPlan | None:
        """Return the plan of the training run `made_for`, if the folder has it.

        Otherwise empty the folder: what is in it belongs to another run, or has no readable plan.
        """
        try:
            plan = TrainingPlan.model_validate_json((self.folder / _PLAN).read_bytes())
        except (FileNotFoundError, ValidationError):
            plan = None
        if plan and plan.made_for == made_for:
            return plan
        if self._all():
            log.warning("removed the checkpoints in %s: they are of another run", self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        return None

    def first_layout_plan(self) -> TrainingPlan | None:
        """Return the plan that the first version wrote here, if there is one."""
        try:
            plan = TrainingPlan.model_validate_json((self.folder / _PLAN).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        return plan if plan.layout == 1 else None

    def keep_plan(self, plan: TrainingPlan) -> None:
        """Write the plan for later attempts, atomically."""
        write_atomically(self.folder / _PLAN, plan.model_dump_json(indent=2))

    def newest(self) -> Path | None:
        """Return the newest complete checkpoint, if any; remove incomplete ones newer than it."""
        for checkpoint in reversed(self._all()):
            if _is_complete(checkpoint):
                return checkpoint
            shutil.rmtree(checkpoint)
        return None

    @contextmanager
    def writing(self, step: int, kept: Kept) -> Iterator[Path]:
        """Yield a checkpoint's folder; what is written to it counts as complete after the context.

        It is synced to disk. If the context raises, remove what was written.

        Args:
            step: the optimizer step.
            kept: what to store beside Trainer's files.

        Raises:
            UnwritableError: the disk is full, or the folder is not writable.
        """
        checkpoint = self.folder / f"{PREFIX}{step}"
        try:
            with writing(checkpoint):
                yield checkpoint
                _complete(checkpoint, kept)
        except BaseException:
            shutil.rmtree(checkpoint, ignore_errors=True)
            raise

    def prune(self, keep: int, best_step: int | None) -> None:
        """Remove old checkpoints until `keep` are left.

        The newest and the best one are always kept, so two may be left where `keep` is 1.
        """
        newest_first = self._all()[::-1]
        needed = [p for p in newest_first if p == newest_first[0] or step_of(p) == best_step]
        others = [p for p in newest_first if p not in needed]
        for checkpoint in others[max(0, keep - len(needed)) :]:
            # The manifest goes first, so that a half-removed checkpoint counts as incomplete.
            (checkpoint / _MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(checkpoint)

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob(f"{PREFIX}*"), key=step_of)


def _complete(checkpoint: Path, kept: Kept) -> None:
    files = sorted(path for path in checkpoint.iterdir() if path.name != _MANIFEST)
    # The files before the manifest: after a power loss it must not name files that are not there.
    for file in files:
        sync(file)
    manifest = _Manifest(kept=kept, files=tuple(FileRecord.of(file) for file in files))
    write_atomically(checkpoint / _MANIFEST, manifest.model_dump_json(indent=2))


def kept_in(checkpoint: Path) -> Kept:
    """Return what a complete checkpoint stores beside Trainer's files."""
    return _Manifest.model_validate_json((checkpoint / _MANIFEST).read_bytes()).kept


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step after which a checkpoint was saved."""
    return int(checkpoint.name.removeprefix(PREFIX))


def _is_complete(checkpoint: Path) -> bool:
    try:
        manifest = _Manifest.model_validate_json((checkpoint / _MANIFEST).read_bytes())
    except (OSError, ValidationError):
        return False
    # By file name: the run's folder may have been moved since.
    return all(
        file.model_copy(update={"path": checkpoint / file.path.name}).is_intact()
        for file in manifest.files
    )
