"""Whatever is trained, and in however many processes, it is what one process trains."""

import json
from pathlib import Path

import pytest
from engine_steps import LABELS, injected, prepared, rebuilt, training
from equal_trainings import assert_equal_training
from tiny_models import tiny_bert, tiny_llama, tiny_t5

from tasks import engine
from tasks.config import BaseModelSettings, LaunchSettings, LoraSettings, TrainingSettings
from tasks.launching import train_in_processes
from tasks.records import InjectedRecord, TrainedRecord

pytestmark = pytest.mark.slow
LORA = LoraSettings.model_validate({"r": 4, "target_modules": "all-linear"})
# Eight rows: the last step of an epoch has two, and so has an evaluation.
SETTINGS = training(max_steps=20, learning_rate=1e-3, eval_steps=5, batch_size=3)


def launches(num_processes: int) -> list[LaunchSettings]:
    """Return the ways to have so many processes: each with all of the base, or with a part."""
    given = {"num_processes": num_processes}
    return [LaunchSettings.model_validate(given | {"strategy": s}) for s in ("replicate", "fsdp")]


def trained(
    record: InjectedRecord, folder: Path, launch: LaunchSettings | None, settings: TrainingSettings
) -> TrainedRecord:
    """Train in this process, or in those of `launch`."""
    data = prepared(record.lora.base, folder).record
    checkpoints = folder / "checkpoints"
    if launch is None:
        return engine.train_adapter(rebuilt(record), record, data, settings, checkpoints)
    return train_in_processes(record, data, settings, checkpoints, launch, lambda _: None).trained


def without_dropout(base: Path, *names: str) -> Path:
    """Switch off a base's own dropout, which each process draws otherwise."""
    file = base / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict.fromkeys(names, 0.0)))
    return base


def base_for(task: str, folder: Path) -> BaseModelSettings:
    """Save a tiny base for a task."""
    given = {"dtype": "float32", "task": task}
    if task == "seq2seq":
        base = without_dropout(tiny_t5(folder), "dropout_rate")
        return BaseModelSettings.model_validate(given | {"source": str(base)})
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    base = without_dropout(tiny_bert(folder), *names)
    return BaseModelSettings.model_validate(given | {"source": str(base), "labels": LABELS})


@pytest.mark.parametrize("launch", launches(2), ids=lambda one: one.strategy)
@pytest.mark.parametrize("task", ["seq2seq", "sequence-classification"])
def test_two_processes_train_each_task_as_one_does(
    task: str, launch: LaunchSettings, tmp_path: Path
) -> None:
    """Equal losses and adapters but for rounding, for models that do not continue a text."""
    base = base_for(task, tmp_path / "base")
    _, record = injected(Path(base.source), tmp_path, LORA, base)
    one = trained(record, tmp_path / "one", None, SETTINGS)
    two = trained(record, tmp_path / "two", launch, SETTINGS)
    assert_equal_training(one, two)
    assert two.eval_metrics == pytest.approx(one.eval_metrics)


@pytest.mark.parametrize("launch", launches(3), ids=lambda one: one.strategy)
def test_three_processes_train_what_one_does(launch: LaunchSettings, tmp_path: Path) -> None:
    """Also where a step or an evaluation has a row less than there are processes."""
    _, record = injected(tiny_llama(tmp_path / "base"), tmp_path, LORA)
    one = trained(record, tmp_path / "one", None, SETTINGS)
    three = trained(record, tmp_path / "three", launch, SETTINGS)
    assert_equal_training(one, three)
    assert three.best_step == one.best_step
