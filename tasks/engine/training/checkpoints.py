"""The checkpoints of one training: whole ones only, and none of another training.

`plan.json` says what the training is and what it chose by itself, once for all its tries. Each
`checkpoint-N` holds what HF Trainer writes, and `complete.json` with the sha256 of each of these
files, written last: a checkpoint without it, or with a file that is not as it says, was being
written (or removed) when the process died, and counts as absent.
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
    """What of a training's state Trainer 5.23 does not keep in its checkpoints."""

    seconds_training: float = 0.0
    """Spent on the steps so far, over all tries that led to them."""
    unlogged_loss: float = 0.0
    """Sum of the losses of the steps since the last one that was logged."""
    last_logged_step: int = 0


class _Manifest(Record):
    kept: Kept
    files: tuple[FileRecord, ...]


class Checkpoints:
    """A folder of checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def plan(self, made_for: str) -> TrainingPlan | None:
        """Give the plan of the training that `made_for` names; what another one left is removed."""
        try:
            plan = TrainingPlan.model_validate_json((self.folder / _PLAN).read_bytes())
        except (FileNotFoundError, ValidationError):
            plan = None
        if plan and plan.made_for == made_for:
            return plan
        if self._all():
            log.warning("the checkpoints in %s are of another training: removed", self.folder)
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
        """Keep the plan for later tries."""
        write_atomically(self.folder / _PLAN, plan.model_dump_json(indent=2))

    def newest(self) -> Path | None:
        """Give the newest whole checkpoint; what is not whole is removed."""
        for checkpoint in reversed(self._all()):
            if _is_whole(checkpoint):
                return checkpoint
            shutil.rmtree(checkpoint)
        return None

    @contextmanager
    def writing(self, step: int, kept: Kept) -> Iterator[None]:
        """Say that a step's checkpoint is whole once it is written; it survives a loss of power.

        Raises:
            UnwritableError: the disk is full, or the place is not writable.
        """
        checkpoint = self.folder / f"{PREFIX}{step}"
        try:
            with writing(checkpoint):
                yield
                self._complete(checkpoint, kept)
        except BaseException:
            shutil.rmtree(checkpoint, ignore_errors=True)
            raise

    def _complete(self, checkpoint: Path, kept: Kept) -> None:
        files = sorted(path for path in checkpoint.iterdir() if path.name != _MANIFEST)
        for file in files:
            sync(file)
        manifest = _Manifest(kept=kept, files=tuple(FileRecord.of(file) for file in files))
        write_atomically(checkpoint / _MANIFEST, manifest.model_dump_json(indent=2))

    def prune(self, keep: int, best_step: int | None) -> None:
        """Remove all but the newest ones, so that `keep` are left with the best one among them."""
        newest_first = self._all()[::-1]
        needed = [p for p in newest_first if p == newest_first[0] or _step(p) == best_step]
        others = [p for p in newest_first if p not in needed]
        for checkpoint in others[max(0, keep - len(needed)) :]:
            # First, so that one that is removed by half is not whole.
            (checkpoint / _MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(checkpoint)

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob(f"{PREFIX}*"), key=_step)


def kept_in(checkpoint: Path) -> Kept:
    """Give what a whole checkpoint keeps besides Trainer's files."""
    return _Manifest.model_validate_json((checkpoint / _MANIFEST).read_bytes()).kept


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(PREFIX))


def _is_whole(checkpoint: Path) -> bool:
    try:
        manifest = _Manifest.model_validate_json((checkpoint / _MANIFEST).read_bytes())
    except (OSError, ValidationError):
        return False
    # By name, as the run's folder may have been moved.
    return all(
        file.model_copy(update={"path": checkpoint / file.path.name}).is_intact()
        for file in manifest.files
    )
