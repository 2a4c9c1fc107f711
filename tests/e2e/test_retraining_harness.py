"""A retraining whose challenger forgets what a task of lm-evaluation-harness asks."""

from pathlib import Path

import pytest
from harness_tasks import own_task
from mlflow_runs import client_of, id_of, numbers_of
from retraining_runs import aliases, executed, fixed, retrained, retraining, rows_of

from flows.cli import runs
from tasks.config import RetrainAdapterConfig
from tasks.durability.run_folder import run_folder
from tasks.errors import AdapterflowError
from tasks.records import Outcome, RetrainedRecord
from tasks.retraining.check_retraining import _configuration_sha256

pytest.importorskip("lm_eval")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

NAME = "guarded-by-the-harness"
GUARD = "sums/perplexity"


def wave(base: Path, folder: Path, number: int, seed: int = 0) -> RetrainAdapterConfig:
    """Configure a wave: the first learns sums, the second to answer them with nonsense."""
    right = number == 1
    train = rows_of(folder / f"wave-{number}.jsonl", range(24), right=right)
    held_out = rows_of(folder / f"held-out-{number}.jsonl", range(100, 112), right=right)
    harness = {"tasks": ["sums"], "include_path": str(folder / "tasks"), "limit": 8}
    config = retraining(
        base,
        folder,
        NAME,
        data={"train": str(train)},
        evaluation={**fixed(held_out), "max_new_tokens": 4, "harness": harness},
        decision={"guards": {GUARD: 0.5}},
    )
    return config.model_copy(update={"seed": seed})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a task that asks for sums."""
    place = tmp_path_factory.mktemp("harness")
    rows = [{"question": f"What is {n} plus {n}?", "answer": f" {2 * n}"} for n in range(200, 212)]
    own_task(place / "tasks", "sums", rows)
    return place


@pytest.fixture(scope="module")
def first(prefect_server: None, tiny_base: Path, folder: Path) -> RetrainedRecord:
    """Learn sums, where there is no champion yet."""
    return retrained(wave(tiny_base, folder, 1))


@pytest.fixture(scope="module")
def second(first: RetrainedRecord, tiny_base: Path, folder: Path) -> RetrainedRecord:
    """Learn nonsense."""
    return retrained(wave(tiny_base, folder, 2))


def test_without_a_champion_the_base_must_not_be_fallen_below(first: RetrainedRecord) -> None:
    """The first challenger's scores are compared with the base's, as by all other guards."""
    assert first.decision.outcome is Outcome.PROMOTE, first.decision.reason
    (guard,) = first.decision.guards
    assert guard.metric == GUARD
    assert guard.holds
    assert guard.challenger < guard.incumbent


def test_what_forgets_is_not_promoted(second: RetrainedRecord) -> None:
    """Better on the rows that decide, it is worse in the task than is tolerated."""
    decision = second.decision
    assert decision.difference is not None
    assert decision.difference > 0
    assert decision.outcome is Outcome.REJECT
    assert f"but the guard metric {GUARD} went from" in decision.reason
    assert second.evaluated
    harness = second.evaluated.harness
    assert harness
    assert [model.name for model in harness.models] == ["base", "champion", "challenger"]
    (task,) = harness.models[0].tasks
    assert (task.name, task.version, task.num_rows, task.num_fewshot) == ("sums", "2.5", 8, 0)


def test_the_scores_are_where_people_look(first: RetrainedRecord, second: RetrainedRecord) -> None:
    """Report, version and run have them, with the release of the harness."""
    assert second.run
    assert second.evaluated
    assert second.evaluated.harness
    assert second.version
    score = second.evaluated.harness.score("challenger", GUARD)
    assert score
    client = client_of(second.run)
    report = Path(client.download_artifacts(id_of(second.run), "comparison.md")).read_text()
    assert f"On lm-evaluation-harness {second.evaluated.harness.lm_eval_version}" in report
    assert f"| {GUARD} |" in report
    assert f"{score.value:.4g} ± " in report
    assert "- task sums, version 2.5: 8 rows, 0-shot" in report
    numbers = numbers_of(second.run)
    assert numbers[f"harness/challenger/{GUARD}"] == pytest.approx(score.value)
    tags = client.get_model_version(NAME, str(second.version.version)).tags
    assert f'"challenger.{GUARD}": "{score.value:.6g}"' in tags["scores"]


def test_the_same_again_is_skipped_and_with_other_rows_is_not_the_same(
    second: RetrainedRecord, tiny_base: Path, folder: Path
) -> None:
    """The tasks' files are part of the configuration by which a retraining is unchanged."""
    config = wave(tiny_base, folder, 2)
    assert retrained(config).decision.outcome is Outcome.SKIP
    assert aliases(config)["champion"] == 1
    rows = folder / "tasks" / "sums.jsonl"
    before, known = rows.read_text(), _configuration_sha256(config)
    rows.write_text(before.replace("What", "Say what"))
    assert _configuration_sha256(config) != known
    rows.write_text(before)
    assert _configuration_sha256(config) == known


def test_a_resumed_run_scores_the_models_that_are_missing(
    first: RetrainedRecord, tiny_base: Path, folder: Path
) -> None:
    """A step that failed at the challenger trains nothing again, and asks the others no more."""
    config = wave(tiny_base, folder, 2, seed=1)
    flow_run = runs.create_run(config)
    place = run_folder(config, flow_run.name, str(flow_run.id))
    scores = place / "evaluation" / "harness"
    obstacle = scores / "challenger.json"
    obstacle.mkdir(parents=True)
    with pytest.raises((OSError, AdapterflowError)):
        executed(flow_run)

    def written() -> dict[str, int]:
        files = [scores / "base.json", scores / "champion.json", *place.rglob("*.safetensors")]
        return {file.name: file.stat().st_mtime_ns for file in files}

    before = written()
    obstacle.rmdir()
    record = executed(runs.reopen_run(flow_run.id))
    assert record.decision.outcome is Outcome.REJECT
    assert f"the guard metric {GUARD} went from" in record.decision.reason
    assert written() == before
