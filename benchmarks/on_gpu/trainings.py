"""Checks that need a training: that it resumes exactly, and that a paged optimizer learns alike."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.messages import Job
from benchmarks.on_gpu.curves import apart
from benchmarks.on_gpu.exactness import AbsentError, Compared
from benchmarks.on_gpu.jobs import prepared
from benchmarks.on_gpu.messages import Item, Place
from benchmarks.on_gpu.shapes import TINY
from benchmarks.tools.ours import sections
from tasks import engine
from tasks.config import BaseModelSettings, DataSettings, LoraSettings, TrainingSettings
from tasks.engine.adapters import adapter_state
from tasks.errors import StoppedError
from tasks.records import TrainedRecord

_STEPS, _ROWS, _STOPPED_AFTER = 5, 4, 2
_CURVES_APART = 0.1
"""As a share of what the loss falls by: eight bits of state are another update."""


def _resumed(place: Place) -> Compared:
    job = _job(place, "resumed")
    whole = _weights(_trained(job, "whole"))
    asked = count(1)
    try:
        _trained(job, "parts", lambda: next(asked) >= _STOPPED_AFTER)
    except StoppedError:
        parts = _weights(_trained(job, "parts"))
    else:
        raise AssertionError("the training was not stopped")
    difference = max(float((parts[name] - one).abs().max()) for name, one in whole.items())
    return Compared(difference, 0.0)


def _paged(place: Place) -> Compared:
    if not torch.cuda.is_available():
        raise AbsentError("paged_adamw_8bit needs a GPU")
    curves = [
        [point.train_loss for point in _trained(job, optim).loss_curve if point.train_loss]
        for optim in ("adamw_torch", "paged_adamw_8bit")
        for job in [_job(place, optim, {"training": {"optim": optim}})]
    ]
    return Compared(apart(curves[1], curves[0]), _CURVES_APART)


TRAININGS: dict[str, Callable[[Place], Compared]] = {
    "resumed training": _resumed,
    "paged_adamw_8bit": _paged,
}
"""By name, each with what it compares."""


def _job(place: Place, name: str, options: dict[str, Any] | None = None) -> Job:
    item = Item(
        kind="check", name=name, shape=TINY, workload="demo", expected_seconds=0, limit_seconds=0
    )
    job = prepared(item, place).job
    fewer = {"num_steps": _STEPS, "batch_size": _ROWS, "options": options or {}}
    return job.model_copy(update=fewer)


def _trained(job: Job, name: str, should_stop: Callable[[], bool] = lambda: False) -> TrainedRecord:
    """Take steps 1 to 4, in a folder in which a stopped training continues."""
    folder, settings = job.folder / name, sections(job)
    base = BaseModelSettings.model_validate(settings["base_model"])
    given = DataSettings.model_validate(settings["data"])
    data = engine.prepare_data(given, base, job.seed, folder / "tokens").record
    model, record = engine.load_base(base)
    lora = engine.configure_lora(LoraSettings.model_validate(settings["lora"]), record, job.seed)
    injected = engine.inject_adapter(model, lora, folder / "initial.safetensors")
    training = TrainingSettings.model_validate(settings["training"])
    checkpoints = folder / "checkpoints"
    return engine.train_adapter(
        model, injected, data, training, checkpoints, should_stop=should_stop
    )


def _weights(trained: TrainedRecord) -> dict[str, torch.Tensor]:
    return adapter_state.load_weights(Path(trained.weights.path))
