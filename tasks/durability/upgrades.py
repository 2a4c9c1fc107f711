"""Runs that the first version began, and that this one resumes from their checkpoints."""

from tasks.config import TrainingSettings
from tasks.records import DataRecord, InjectedRecord, RunRecord
from tasks.runtime.progress import logger
from tasks.tracking import Tracker

_SAME = (
    *(
        f"data/{split}/{name}"
        for split in ("train", "eval")
        for name in ("sha256", "num_tokens", "num_trained_tokens")
    ),
    "base_model/fingerprint",
    "adapter/base_checksum",
    "lora/r",
    "lora/lora_alpha",
    "seed",
)
"""Parameters by which an attempt of the first version is known to have trained on the same."""


def adopt_checkpoints(
    injected: InjectedRecord, data: DataRecord, settings: TrainingSettings, run: RunRecord
) -> None:
    """Let checkpoints of the first version count as this training's, if nothing has changed.

    The first version knew a training by a hash in which paths and wording took part, so that it
    can't be compared. What it logged about rows, tokens, base and adapter can be: every attempt
    logs it anew, before step 4. The settings are the flow run's own, which never change.
    """
    from tasks.engine.training import LAYOUT, Checkpoints, training_identity

    checkpoints = Checkpoints(run.checkpoints)
    plan = checkpoints.first_layout_plan()
    if plan is None:
        return
    first: dict[str, str] = {}
    now: dict[str, str] = {}
    for logged in Tracker(run).logged_params():
        first = {**logged, **first}
        now.update(logged)
    if changed := [name for name in _SAME if first.get(name) != now.get(name)]:
        logger().warning("not resumed from older checkpoints: %s changed", ", ".join(changed))
        return
    made_for = training_identity(injected, data, settings)
    checkpoints.keep_plan(plan.model_copy(update={"made_for": made_for, "layout": LAYOUT}))
