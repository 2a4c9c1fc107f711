"""Step 4 of 6: train the adapter, and verify that it changed and the base did not."""

from collections.abc import Mapping

from tasks import engine
from tasks.config import LearningObjective, TrainingSettings
from tasks.durability.step import step
from tasks.durability.training_progress import published_progress, tokens_per_step
from tasks.durability.upgrades import adopt_checkpoints
from tasks.engine import workbench
from tasks.records import DataRecord, InjectedRecord, RunRecord, TrainedRecord
from tasks.runtime.progress import logger, progress
from tasks.tracking import Tracker

_OF_TRAINING = {
    "loss": "train/loss",
    # MLflow's page has the charts in the order of their names: the losses come first.
    "grad_norm": "update/grad_norm",
    "learning_rate": "update/learning_rate",
}
_MEASURED_IN_TRAINING = ("rewards/", "logps/", "lengths/")
_OF_EVALUATION = "eval_"


@step
def train_adapter(
    injected: InjectedRecord, data: DataRecord, settings: TrainingSettings, run: RunRecord
) -> TrainedRecord:
    """Train the adapter on the data, from this run's last checkpoint if there is one.

    Raises:
        VerificationError: the adapter did not change, the base changed, or the loss is not finite.
    """
    from tasks.engine.training import TrainingProgress

    adopt_checkpoints(injected, data, settings, run)
    model = workbench.take(injected)
    tracker = Tracker(run)
    tracker.log_params(_params(settings))
    with (
        progress("training step") as shown,
        published_progress(tokens_per_step(data, settings)) as published,
    ):
        notes: dict[str, str] = {}

        def on_progress(now: TrainingProgress) -> None:
            if tracked := _tracked(now.metrics):
                tracker.log_metrics(tracked, now.step)
            losses = {n: v for n, v in now.metrics.items() if n in {"loss", "eval_loss"}}
            notes.update((name, f"{name} {value:.4f}") for name, value in losses.items())
            shown.at(now.step, now.num_steps, "  ".join(notes.values()))
            published.at(now.step, now.num_steps, losses.get("loss"))

        record = engine.train_adapter(
            model,
            injected,
            data,
            settings,
            run.checkpoints,
            on_progress,
            on_evaluating=shown.part("held-out row").at,
            on_reference=shown.part("reference of a pair").at,
        )
    workbench.put(record, model)
    _report(record, tracker)
    return record


def _params(settings: TrainingSettings) -> dict[str, object]:
    """Return the settings as parameters; those of preferences only where they take effect."""
    sections = {"training": settings.model_dump(mode="json", exclude={"preferences"})}
    if settings.objective is not LearningObjective.SFT:
        sections["training/preferences"] = settings.preference_settings.model_dump(mode="json")
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
    if learned := record.preferences:
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
