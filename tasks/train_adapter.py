"""Step 4 of 6: train the adapter, and verify that it changed and the base did not."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from tasks import engine, launching
from tasks.config import LaunchSettings, LearningObjective, TrainingSettings
from tasks.durability.step import step
from tasks.durability.stopping import stopping_later
from tasks.durability.training_progress import published_progress, tokens_per_step
from tasks.durability.upgrades import adopt_checkpoints
from tasks.engine import workbench
from tasks.records import DataRecord, InjectedRecord, RunRecord, TrainedRecord
from tasks.runtime.progress import logger, progress
from tasks.tracking import Tracker

if TYPE_CHECKING:
    from tasks.engine.training import OnTraining, TrainingProgress

_OF_TRAINING = {
    "loss": "train/loss",
    # MLflow's page has the charts in the order of their names: the losses come first.
    "grad_norm": "update/grad_norm",
    "learning_rate": "update/learning_rate",
}
_MEASURED_IN_TRAINING = ("rewards/", "logps/", "lengths/", "kl", "nll_loss", "log_odds_")
_OF_EVALUATION = "eval_"


@step
def train_adapter(
    injected: InjectedRecord,
    data: DataRecord,
    settings: TrainingSettings,
    launch: LaunchSettings,
    run: RunRecord,
) -> TrainedRecord:
    """Train the adapter on the data, from this run's last checkpoint if there is one.

    Raises:
        UserError: there are more processes than devices or rows, or there is no such cluster.
        VerificationError: the adapter did not change, the base changed, or the loss is not finite.
    """
    launching.check_processes(launch, settings, data.train.num_rows)
    adopt_checkpoints(injected, data, settings, run)
    tracker = Tracker(run)
    tracker.log_params(_params(settings))
    with (
        progress("training step") as shown,
        published_progress(tokens_per_step(data, settings)) as published,
        stopping_later(settings.termination_seconds) as should_stop,
    ):
        notes: dict[str, str] = {}

        def on_progress(now: "TrainingProgress") -> None:
            _track(tracker, now)
            losses = {n: v for n, v in now.metrics.items() if n in {"loss", "eval_loss"}}
            notes.update((name, f"{name} {value:.4f}") for name, value in losses.items())
            shown.at(now.step, now.num_steps, "  ".join(notes.values()))
            published.at(now.step, now.num_steps, losses.get("loss"))

        watching = _Watching(
            on_progress,
            shown.part("held-out row").at,
            shown.part("reference of a prompt").at,
            should_stop,
        )
        if launching.is_alone(launch):
            record = _train_here(injected, data, settings, run, watching)
        else:
            record = _train_in_processes(injected, data, settings, run, watching, launch, tracker)
    _report(record, tracker)
    return record


class _Watching(NamedTuple):
    """What is called while a training runs."""

    on_progress: "OnTraining"
    on_evaluating: Callable[[int, int], None]
    on_reference: Callable[[int, int], None]
    should_stop: Callable[[], bool]


def _train_here(
    injected: InjectedRecord,
    data: DataRecord,
    settings: TrainingSettings,
    run: RunRecord,
    watching: _Watching,
) -> TrainedRecord:
    model = workbench.take(injected)
    record = engine.train_adapter(
        model,
        injected,
        data,
        settings,
        run.checkpoints,
        watching.on_progress,
        on_evaluating=watching.on_evaluating,
        on_reference=watching.on_reference,
        should_stop=watching.should_stop,
    )
    workbench.put(record, model)
    return record


def _train_in_processes(  # noqa: PLR0913 - a training has this many inputs
    injected: InjectedRecord,
    data: DataRecord,
    settings: TrainingSettings,
    run: RunRecord,
    watching: _Watching,
    launch: LaunchSettings,
    tracker: Tracker,
) -> TrainedRecord:
    # Each process has a base of its own; the next step rebuilds the model here.
    workbench.release()
    size = launching.num_processes(launch)
    where = "of this machine" if launch.cluster is None else "on the Ray cluster"
    logger().info("training in %d processes %s", size, where)
    record, memory, gpu_memory, sharded = launching.train_in_processes(
        injected,
        data,
        settings,
        run.checkpoints,
        launch,
        watching.on_progress,
        on_evaluating=watching.on_evaluating,
        on_reference=watching.on_reference,
        on_earlier=partial(_track, tracker),
        should_stop=watching.should_stop,
    )
    numbers = {"train/processes": size, "peak_memory_mb/of_a_training_process": max(memory) / 1e6}
    if any(gpu_memory):
        numbers["peak_gpu_memory_mb/of_a_training_process"] = max(gpu_memory) / 1e6
    if sharded:
        numbers["base_mb/of_a_training_process"] = max(sharded.own_bytes) / 1e6
        numbers["peak_memory_mb/of_loading_in_a_process"] = max(sharded.loading_peak_bytes) / 1e6
    tracker.log_numbers(numbers)
    return record


def _track(tracker: Tracker, now: "TrainingProgress") -> None:
    if tracked := _tracked(now.metrics):
        tracker.log_metrics(tracked, now.step)


def _params(settings: TrainingSettings) -> dict[str, object]:
    """Return the settings as parameters; those of preferences only where they take effect."""
    sections = {"training": settings.model_dump(mode="json", exclude={"preferences"})}
    if settings.objective is not LearningObjective.SFT:
        sections["training/preferences"] = settings.preference_settings.written(settings.objective)
    return {f"{name}/{k}": v for name, given in sections.items() for k, v in given.items()}


def _tracked(logged: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics for MLflow, by their names there, from all that the Trainer logs."""
    training = {known: logged[name] for name, known in _OF_TRAINING.items() if name in logged}
    measured = {
        f"train/{name}": value
        for name, value in logged.items()
        if name.startswith(_MEASURED_IN_TRAINING)
    }
    return (
        training
        | measured
        | {
            f"eval/{name.removeprefix(_OF_EVALUATION)}": value
            for name, value in logged.items()
            if name.startswith(_OF_EVALUATION)
        }
    )


def _report(record: TrainedRecord, tracker: Tracker) -> None:
    tokens_per_second = record.num_tokens / record.seconds_training
    tracker.log_params({"training/batching_used": record.batching})
    tracker.log_numbers(
        {
            "train/tokens_per_second": tokens_per_second,
            "train/trained_tokens": record.num_trained_tokens,
            "adapter/change": record.adapter_change,
        }
    )
    if (learned := record.preferences) and learned.reference_sha256:
        tracker.log_params({"training/preferences/reference_sha256": learned.reference_sha256})
        tracker.log_numbers({"seconds/reference": learned.seconds_reference})
    for warning in record.warnings:
        logger().warning(warning)
    logger().info(
        "%d steps in %.0f s (%.0f tokens/s, %s batches): loss %.4f%s",
        record.num_steps,
        record.seconds_training,
        tokens_per_second,
        record.batching,
        record.train_loss,
        "" if record.eval_loss is None else f", held-out loss {record.eval_loss:.4f}",
    )
    for name, loss in record.eval_losses.items():
        logger().info("held-out loss of %s: %.4f", name, loss)
    if record.eval_metrics:
        logger().info("held-out rows: %s", record.eval_metrics_text)
