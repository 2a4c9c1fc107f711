"""Several processes train what one does, and whatever ends them, nothing is lost or left."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from chaos_ranks import RankChaos, ranks_in
from engine_steps import injected, prepared, rebuilt, training
from equal_trainings import assert_equal_training, losses
from preference_pairs import data_of, preferring

from tasks import engine
from tasks.config import LaunchSettings, LoraSettings, TrainingSettings
from tasks.engine.adapters import load_weights
from tasks.engine.training import TrainingProgress
from tasks.errors import StoppedError
from tasks.launching import train_in_processes
from tasks.records import InjectedRecord, TrainedRecord

pytestmark = pytest.mark.slow
TWO = LaunchSettings(num_processes=2)
DROPOUT = LoraSettings(r=4, lora_dropout=0.3)


def in_two(
    record: InjectedRecord,
    folder: Path,
    settings: TrainingSettings,
    on_progress: Callable[[TrainingProgress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainedRecord:
    """Train in two processes."""
    data = prepared(record.lora.base, folder).record
    checkpoints = folder / "checkpoints"
    result = train_in_processes(
        record, data, settings, checkpoints, TWO, on_progress, should_stop=should_stop
    )
    return result.trained


def test_two_processes_train_what_one_does(tiny_base: Path, tmp_path: Path) -> None:
    """Equal losses, of training and evaluation, and equal weights, but for rounding."""
    _, record = injected(tiny_base, tmp_path)
    settings = training(
        max_steps=20, learning_rate=1e-3, eval_steps=5, gradient_accumulation_steps=2
    )
    data = prepared(record.lora.base, tmp_path).record
    one = engine.train_adapter(rebuilt(record), record, data, settings, tmp_path / "one" / "c")
    seen: list[TrainingProgress] = []
    two = in_two(record, tmp_path / "two", settings, seen.append)

    assert_equal_training(one, two)
    assert two.best_step == one.best_step
    assert [now.step for now in seen if not now.metrics] == list(range(1, 21))
    assert not ranks_in(tmp_path)
    assert not (tmp_path / "two" / "launch").exists()


@pytest.mark.parametrize(
    ("objective", "losses_of"),
    [
        ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.8, 1.0]}),
        ("kto", {"beta": 1, "undesirable_weight": 0.01}),
    ],
)
def test_two_processes_learn_preferences_as_one_does(
    tiny_base: Path, tmp_path: Path, objective: str, losses_of: dict[str, object]
) -> None:
    """Equal losses, measures and reference but for rounding; stopped and resumed, equal bytes.

    One of the losses is a mean over the answers' tokens of all processes, another one has their
    divergence.
    """
    _, record = injected(tiny_base, tmp_path)
    settings = preferring(
        objective=objective,
        preferences=losses_of,
        batch_size=3,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        max_steps=9,
        logging_steps=2,
    )
    data = data_of(record.lora.base, tmp_path, settings.objective).record
    one, two, cut = (tmp_path / name / "checkpoints" for name in ("one", "two", "cut"))
    alone = engine.train_adapter(rebuilt(record), record, data, settings, one)
    seen: list[tuple[int, int]] = []
    both = train_in_processes(
        record,
        data,
        settings,
        two,
        TWO,
        lambda _: None,
        on_reference=lambda done, total: seen.append((done, total)),
    ).trained
    assert seen[-1][0] == seen[-1][1] >= 10
    assert losses(both) == pytest.approx(losses(alone), rel=1e-5)
    assert both.eval_metrics == pytest.approx(alone.eval_metrics, rel=1e-3, abs=1e-5)
    # At first the rewards of a pair are equal but for rounding, and it is chance which is larger.
    pairs_of_logs = zip(logged_on_pairs(two)[1:], logged_on_pairs(one)[1:], strict=True)
    for ours, theirs in pairs_of_logs:
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    references = [load_weights(folder / "reference.safetensors") for folder in (two, one)]
    for split, values in references[0].items():
        assert values.allclose(references[1][split], rtol=1e-5)

    steps: list[int] = []
    with pytest.raises(StoppedError):
        train_in_processes(
            record,
            data,
            settings,
            cut,
            TWO,
            lambda now: steps.append(now.step),
            should_stop=lambda: bool(steps),
        )
    resumed = train_in_processes(record, data, settings, cut, TWO, lambda _: None).trained
    assert resumed.weights.sha256 == both.weights.sha256
    assert resumed.loss_curve == both.loss_curve
    assert logged_on_pairs(cut) == logged_on_pairs(two)
    assert resumed.preferences is not None
    assert both.preferences is not None
    assert resumed.preferences.reference_sha256 == both.preferences.reference_sha256


def logged_on_pairs(checkpoints: Path) -> list[dict[str, float]]:
    """Return what the last checkpoint has of the logs."""
    last = max(checkpoints.glob("checkpoint-*"), key=lambda one: int(one.name.rpartition("-")[2]))
    history: list[dict[str, float]] = json.loads((last / "trainer_state.json").read_text())[
        "log_history"
    ]
    return history


def test_a_training_that_is_stopped_ends_as_if_it_had_not_been(
    tiny_base: Path, tmp_path: Path
) -> None:
    """SIGTERM to its processes does nothing; stopped and resumed, the adapter is the same bytes.

    Resumed in another number of processes it ends, too, and says so.
    """
    _, record = injected(tiny_base, tmp_path, DROPOUT)
    settings = training(max_steps=40, eval_steps=3)
    steps: list[int] = []

    def signal_all(now: TrainingProgress) -> None:
        if not steps:
            for one in ranks_in(tmp_path / "whole"):
                one.send_signal(signal.SIGTERM)
        steps.append(now.step)

    whole = in_two(record, tmp_path / "whole", settings, signal_all)
    assert steps[-1] == 40
    steps.clear()
    cut = tmp_path / "cut"
    with pytest.raises(StoppedError):
        in_two(record, cut, settings, lambda now: steps.append(now.step), lambda: bool(steps))
    shutil.copytree(cut, tmp_path / "other")
    resumed = in_two(record, cut, settings, lambda now: steps.append(now.step))
    assert sorted(set(steps)) == list(range(1, 41))
    assert resumed.weights.sha256 == whole.weights.sha256
    assert resumed.loss_curve == whole.loss_curve
    assert not resumed.warnings

    data = prepared(record.lora.base, tmp_path).record
    checkpoints = tmp_path / "other" / "checkpoints"
    alone = engine.train_adapter(rebuilt(record), record, data, settings, checkpoints)
    assert alone.num_steps == 40
    assert any("trained in 1 processes after 2" in one for one in alone.warnings)


def test_killed_processes_lose_and_leave_nothing(tiny_base: Path, tmp_path: Path) -> None:
    """Whichever process is killed: it is told, none is left, and the resumed adapter is equal."""
    result = RankChaos(tiny_base, tmp_path, seed=0).run(6)
    assert not result["failures"]
    assert [tally["kills"] for tally in result["victims"].values()] == [2, 2, 2]
