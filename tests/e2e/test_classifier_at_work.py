"""A classifier from the whole flow, and what it is put to: files of rows, MLflow, merging."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_steps import LABELLED, LABELS
from flow_runs import tiny_config
from mlflow_runs import client_of, logged
from tiny_models import tiny_bert, tiny_llama

from flows.cli import runs
from flows.cli.check import forecast_of
from tasks.config import PredictBatchConfig, TrainAdapterConfig
from tasks.engine.adapters.adapter_set import AdapterSet
from tasks.engine.adapters.folders import find_adapter
from tasks.errors import UserError
from tasks.inference import predict_batch as task
from tasks.inference.adapters_on_base import base_of
from tasks.inference.exporting import merge_adapter
from tasks.records import ReportRecord

ROWS = [*LABELLED] * 4
ANIMAL, MONEY, PLACE = (str(row["text"]) for row in LABELLED[:3])


def write(file: Path, rows: list[Any]) -> Path:
    """Write rows as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def config_of(base: Path, data: Path) -> TrainAdapterConfig:
    """Configure a run of seconds that learns the labels."""
    return tiny_config(
        base,
        data,
        base_model={"task": "sequence-classification", "hub_id": None},
        lora={"target_modules": "all-linear"},
        training={"num_train_epochs": 6, "learning_rate": 2e-2, "load_best_model_at_end": False},
        inference={"sample_rows": 100},
    )


@pytest.fixture(scope="module", params=[tiny_bert, tiny_llama], ids=["encoder", "decoder"])
def config(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> TrainAdapterConfig:
    """Configure a run on an encoder, and one on a decoder."""
    folder = tmp_path_factory.mktemp("flow")
    save: Callable[[Path], Path] = request.param
    return config_of(save(folder / "base"), write(folder / "rows.jsonl", ROWS))


@pytest.fixture(scope="module")
def report(prefect_server: None, config: TrainAdapterConfig) -> ReportRecord:
    """Run the flow once."""
    return runs.execute(runs.create_run(config))


@pytest.fixture
def predicted(report: ReportRecord, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Return what answers rows with the adapter."""

    def predict(rows: list[Any], suffix: str = ".jsonl", **changes: Any) -> list[dict[str, Any]]:  # noqa: ANN401
        given = {
            "adapters": [{"source": str(report.saved.folder)}],
            "input": str(write(tmp_path / f"rows{suffix}", rows)),
            "output": str(tmp_path / f"answers{suffix}"),
        }
        record = task.predict_batch.fn(PredictBatchConfig.model_validate(given | changes))
        return [json.loads(line) for line in record.output.path.read_text().splitlines()]

    return predict


def test_the_six_steps_classify(report: ReportRecord) -> None:
    """Labels are recorded; from its file the adapter gets as many right as when it was trained."""
    assert report.data.labels == report.saved.base.labels == LABELS
    accuracy = report.trained.eval_metrics["accuracy"]
    assert report.data.eval
    assert report.loaded.num_samples == report.data.eval.num_rows
    assert report.loaded.adapter_exact_match == accuracy > 0.5
    assert report.loaded.base_exact_match is not None
    assert report.loaded.base_exact_match < accuracy
    assert {sample.adapter_answer for sample in report.loaded.samples} <= set(LABELS)
    assert ReportRecord.model_validate_json(report.model_dump_json()) == report


def test_mlflow_and_the_card_say_the_task(report: ReportRecord) -> None:
    """The run has the task, its labels and the metrics; the card says what it is for."""
    run = logged(report.run)
    assert run.data.params["base_model/task"] == "sequence-classification"
    assert run.data.params["base_model/labels"] == ", ".join(LABELS)
    for name, value in report.trained.eval_metrics.items():
        assert run.data.metrics[f"eval/{name}"] == value
    card = (report.saved.folder / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert f"| held-out metrics | {report.trained.eval_metrics_text} |" in card


def test_check_says_what_the_run_then_does(
    report: ReportRecord, config: TrainAdapterConfig
) -> None:
    """The forecast counts the head, and its probe trains."""
    found = forecast_of(config, with_probe=True)
    assert found.task == "sequence-classification"
    assert found.data == report.data.model_copy(update={"tokens": ()})
    assert found.num_trainable_parameters == report.trained.injected.num_trainable_parameters
    assert found.probe
    assert found.probe.seconds_per_step > 0


def test_rows_get_labels_and_probabilities(
    predicted: Callable[..., list[dict[str, Any]]],
) -> None:
    """Each row gets its label and how sure it is; a row without text is reported."""
    answers = predicted([{"text": ANIMAL}, {"prompt": ANIMAL}])
    assert answers[0]["answer"] == "animal"
    assert 1 / 3 < answers[0]["probability"] <= 1
    assert answers[0]["error"] is None
    assert answers[1]["answer"] is None
    assert "row 2: the column text, which is to be classified, is missing" in answers[1]["error"]


def test_how_many_rows_at_once_changes_nothing(
    predicted: Callable[..., list[dict[str, Any]]],
) -> None:
    """Padding beside longer rows leaves a row's probability as it is alone."""
    rows = [{"text": "The fox " * n} for n in (1, 7, 3)]
    together = predicted(rows)
    alone = predicted(rows, batch_size=1, overwrite=True)
    for one, other in zip(together, alone, strict=True):
        assert one["answer"] == other["answer"]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


def test_the_base_may_be_elsewhere(
    predicted: Callable[..., list[dict[str, Any]]], config: TrainAdapterConfig
) -> None:
    """A base that is only named gets the adapter's task and classes."""
    base = {"source": config.base_model.source}
    assert predicted([{"text": MONEY}], base_model=base)[0]["answer"] == "money"


def test_a_column_is_not_replaced(predicted: Callable[..., list[dict[str, Any]]]) -> None:
    """Rows that have a probability already keep it, and the message says what to set."""
    rows = [{"text": "The card", "probability": 1}]
    with pytest.raises(UserError, match="probability_column"):
        predicted(rows)
    assert predicted(rows, probability_column="sure")[0]["sure"] < 1


def test_other_classes_are_refused(report: ReportRecord) -> None:
    """A base that is loaded for as many, but other, classes does not take the adapter."""
    folder = find_adapter(report.saved.folder)
    other = base_of(folder).model_copy(update={"labels": ("x", "y", "z")})
    with pytest.raises(UserError, match="made for animal, money, place, but the base is loaded"):
        AdapterSet.on(other).load(folder)


def test_mlflow_serves_labels(report: ReportRecord) -> None:
    """The logged model answers rows with label and probability, as `predict` does."""
    import mlflow.pyfunc
    import pandas as pd  # type: ignore[import-untyped]

    assert report.model_uri
    stored = client_of(report.run).get_logged_model(report.model_uri.removeprefix("models:/"))
    model = mlflow.pyfunc.load_model(stored.artifact_location.removeprefix("file://"))
    texts = [ANIMAL, PLACE]
    given = model.predict(pd.DataFrame({"text": texts}))
    assert [one["label"] for one in given] == ["animal", "place"]
    again = model.predict(pd.DataFrame({"text": texts[:1]}))
    assert again[0]["probability"] == pytest.approx(given[0]["probability"], abs=1e-5)


def test_a_merged_classifier_needs_no_peft(report: ReportRecord, tmp_path: Path) -> None:
    """Merged, it scores as the adapter did, and transformers alone knows the label names."""
    from transformers import pipeline

    rows = write(tmp_path / "rows.jsonl", list(LABELLED))
    source = str(report.saved.folder)
    record = merge_adapter(source, tmp_path / "merged", None, "auto", rows, max_new_tokens=1)
    assert record.score is not None
    assert record.score > 0.5
    assert "pipeline_tag: text-classification" in (tmp_path / "merged/README.md").read_text()
    classify = pipeline("text-classification", model=str(tmp_path / "merged"))
    assert classify(ANIMAL)[0]["label"] == "animal"
