"""A process's share of a training, whoever started it."""

import logging
from typing import TYPE_CHECKING

from tasks.errors import StoppedError
from tasks.launching.reports import Reporter
from tasks.launching.work import Outcome, Sharded, Work, WorkFolder
from tasks.runtime.atomic_files import write_atomically
from tasks.runtime.measuring import peak_gpu_bytes, peak_memory_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.engine.training import Group


def train_share(folder: WorkFolder, work: Work, model: "PreTrainedModel", group: "Group") -> None:
    """Train a share of the rows; the first process reports, and leaves the outcome.

    Args:
        folder: of the work.
        work: the inputs of step 4.
        model: the base with its adapter.
        group: the processes that train together.

    Raises:
        AdapterflowError: as `tasks.engine.train_adapter` does.
        LostPeerError: another process ended.
    """
    reporter = Reporter(folder.reports) if group.rank == 0 else None
    if reporter:
        logging.getLogger("tasks").addHandler(reporter)
    sharded = _sharded(model, group)
    if reporter and sharded:
        reporter.on_loaded(sharded.text)
    from tasks.engine.training import passing_together

    with passing_together():
        outcome = _train(folder, work, model, group, reporter)
    if reporter:
        outcome = outcome.model_copy(update={"sharded": sharded})
        write_atomically(folder.outcome, outcome.model_dump_json())


def _sharded(model: "PreTrainedModel", group: "Group") -> Sharded | None:
    """Return what each process has of the base, and what that took; None if it is all of it."""
    from tasks.engine.training import ShardingGroup, base_bytes

    if not isinstance(group, ShardingGroup):
        return None
    return Sharded(
        whole_bytes=group.whole_bytes,
        own_bytes=tuple(group.gather(base_bytes(model))),
        loading_peak_bytes=tuple(group.gather(peak_memory_bytes())),
        loading_peak_gpu_bytes=tuple(group.gather(peak_gpu_bytes())),
    )


def _train(
    folder: WorkFolder,
    work: Work,
    model: "PreTrainedModel",
    group: "Group",
    reporter: Reporter | None,
) -> Outcome:
    from tasks import engine

    try:
        trained = engine.train_adapter(
            model,
            work.injected,
            work.data,
            work.settings,
            work.checkpoints,
            reporter.on_progress if reporter else None,
            on_evaluating=reporter.on_evaluating if reporter else None,
            on_reference=reporter.on_reference if reporter else None,
            should_stop=folder.is_stopping,
            group=group,
            max_eval_rows=work.max_eval_rows,
        )
    except StoppedError as stopped:
        return Outcome(stopped=str(stopped))
    return Outcome(
        trained=trained,
        peak_memory_bytes=tuple(group.gather(peak_memory_bytes())),
        peak_gpu_bytes=tuple(group.gather(peak_gpu_bytes())),
    )
