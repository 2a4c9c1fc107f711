"""The retraining's configuration: the example parses, and its hash tells what matters apart."""

import hashlib
from pathlib import Path

import pytest
from command_line_runs import run_in_process
from pydantic import ValidationError

from tasks.config import EvaluationSettings, RetrainAdapterConfig
from tasks.config.reading import read_settings
from tasks.errors import UserError

EXAMPLE = Path(__file__).parents[3] / "deployments" / "retraining.yaml"


def example(*overrides: str) -> RetrainAdapterConfig:
    """Read the example configuration."""
    return read_settings(RetrainAdapterConfig, EXAMPLE, overrides)


def test_the_example_names_files_that_are_there() -> None:
    """The example's rows exist beside it, and have the sha256 that it fixes."""
    config = example()
    assert Path(config.data.sources[0].path).is_file()
    digest = hashlib.sha256(Path(config.evaluation.rows).read_bytes()).hexdigest()
    assert digest == config.evaluation.sha256


@pytest.mark.parametrize(
    "override",
    [
        "lora.r=4",
        "seed=1",
        "decision.margin=0.5",
        "data.max_length=99",
        "evaluation.answers=text",
        "registry.continue_champion=true",
        f"decision.older={{rows: a.jsonl, sha256: {'a' * 64}, guards: {{loss: 1}}}}",
        "evaluation.harness={tasks: [lambada]}",
    ],
)
def test_what_changes_adapter_or_verdict_changes_the_hash(override: str) -> None:
    """A setting that the adapter or its decision is a function of is part of the hash."""
    assert example(override).sha256() != example().sha256()


@pytest.mark.parametrize(
    "override",
    [
        "tracking.experiment=x",
        "output.keep_runs=3",
        "evaluation.batch_size=1",
        "decision.approval={}",
        "data.train=elsewhere.jsonl",
        "base_model.source=/elsewhere",
        "registry.name=other",
    ],
)
def test_where_things_are_does_not_change_the_hash(override: str) -> None:
    """The same retraining from another folder or to another place has the same hash."""
    assert example(override).sha256() == example().sha256()


def test_the_harness_scores_no_classifiers() -> None:
    """Its tasks ask for text, so that a model of another kind is one message."""
    with pytest.raises(UserError, match=r"base_model\.task is seq2seq; lm-evaluation-harness"):
        example("evaluation.harness={tasks: [lambada]}", "base_model.task=seq2seq")


def test_without_the_harness_records_of_earlier_runs_stay_valid() -> None:
    """What is not set is not written, as steps are found by what is."""
    assert "harness" not in example().model_dump(mode="json")["evaluation"]


def test_where_the_harness_s_tasks_are_does_not_change_the_hash() -> None:
    """Which tasks there are, of how many rows, is part of it; their files are hashed themselves."""
    known = "evaluation.harness={tasks: [lambada]}"
    same = "evaluation.harness={tasks: [lambada], include_path: /elsewhere, batch_size: 9}"
    other = "evaluation.harness={tasks: [lambada], limit: 9}"
    assert example(same).sha256() == example(known).sha256()
    assert example(other).sha256() != example(known).sha256()


@pytest.mark.parametrize("name", ["hit@1", "f1[micro]", "x" * 61, "", "größe", "a\n"])
def test_a_metric_s_name_that_mlflow_refuses_is_refused(name: str) -> None:
    """It would fail the run only when its scores become tags, after the promotion."""
    settings = {"rows": "rows.jsonl", "sha256": "0" * 64}
    with pytest.raises(ValidationError, match="can't store a metric named"):
        EvaluationSettings.model_validate({**settings, "metrics": {name: "operator:eq"}})
    known = {"hit-1.of_10": "operator:eq"}
    assert EvaluationSettings.model_validate({**settings, "metrics": known}).metrics == known


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("decision.guards={loss: -0.1}", r"decision\.guards: the guard loss tolerates -0\.1; give"),
        ("evaluation.harness={tasks: []}", r"evaluation\.harness\.tasks"),
        ("evaluation.harness={tasks: [a, b, a]}", r"the task 'a' is named twice; remove one"),
        ("evaluation.harness={tasks: [' ']}", r"' ' is no task's name"),
        ("evaluation.harness={tasks: [a], limit: 0}", r"evaluation\.harness\.limit"),
        ("decision.guards={a/acc: 0.1}", r"'a/acc', a score of evaluation\.harness, which is not"),
        ("decision.approval={timeout_minutes: 1e10}", r"minutes is .1e10.; it must be less"),
    ],
)
def test_what_no_decision_can_be_made_by_is_refused(override: str, message: str) -> None:
    """A guard that demands a gain, or a wait of centuries, is refused before anything starts."""
    with pytest.raises(UserError, match=message):
        example(override)


def test_trained_biases_are_refused_before_they_are_trained() -> None:
    """An adapter with biases of the base can't be scored beside others, whatever it learned."""
    with pytest.raises(UserError, match=r"=all: lora\.bias all trains .* use bias none"):
        example("lora.bias=all")


def test_rows_without_a_sha256_are_refused(tmp_path: Path) -> None:
    """A held-out file must be fixed by its sha256; the message names the setting."""
    text = EXAMPLE.read_text().replace("  sha256:", "  # sha256:")
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"evaluation\.sha256 is missing"):
        read_settings(RetrainAdapterConfig, file)


def test_other_rows_end_before_anything_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`retrain` on a changed held-out file is one line on stderr, and exit status 2."""
    wrong = f"--set=evaluation.sha256='{'0' * 64}'"
    status, out, err = run_in_process(capsys, monkeypatch, "retrain", EXAMPLE, wrong)
    assert (status, out) == (2, "")
    assert "scores on different rows are not comparable" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.from=models:/a/1", "begins with the champion, and lora.from with 'models:/a/1'"),
        ("lora.init_lora_weights=pissa", "pissa saves an adapter of twice the rank"),
    ],
)
def test_a_training_has_one_beginning(override: str, message: str) -> None:
    """The champion excludes other beginnings."""
    with pytest.raises(UserError, match=message):
        example("registry.continue_champion=true", override)


def test_where_older_rows_are_does_not_change_the_hash(tmp_path: Path) -> None:
    """They are known by their sha256."""
    settings = f"sha256: {'a' * 64}, guards: {{loss: 1}}"
    one, other = (
        example(f"decision.older={{rows: {tmp_path / name}.jsonl, {settings}}}") for name in "ab"
    )
    assert one.sha256() == other.sha256()
    assert one.decision.older != other.decision.older
