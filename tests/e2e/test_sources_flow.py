"""Several sources through the whole flow: MLflow, the report and the form's values show each."""

import json
from pathlib import Path

import pytest
from flow_runs import sums, tiny_config
from mlflow_runs import client_of, id_of, logged

from flows.cli import runs
from flows.cli.check import forecast_of, print_forecast
from tasks.config import TrainAdapterConfig
from tasks.records import ReportRecord


@pytest.fixture(scope="module")
def config(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainAdapterConfig:
    """Configure a run on sums, twice as many as chats, of which one stands there twice."""
    folder = tmp_path_factory.mktemp("sources")
    turns = [
        [
            {"role": "user", "content": f"Hi {n if n != 10 else 4}"},
            {"role": "assistant", "content": "Hello!"},
        ]
        for n in range(12)
    ]
    (folder / "chat.jsonl").write_text("".join(json.dumps({"messages": t}) + "\n" for t in turns))
    sources = [
        {"path": str(sums(folder / "sums.jsonl")), "weight": 2},
        {"path": str(folder / "chat.jsonl"), "weight": 1},
    ]
    given = tiny_config(tiny_base, folder / "sums.jsonl").model_dump()
    given["data"] = {"train": sources, "eval_fraction": 0.25}
    return TrainAdapterConfig.model_validate(given)


@pytest.fixture(scope="module")
def report(prefect_server: None, config: TrainAdapterConfig) -> ReportRecord:
    """Run it once for this module."""
    return runs.execute(runs.create_run(config))


def test_each_source_is_a_dataset(report: ReportRecord) -> None:
    """MLflow has each source's hash and counts, and the hash of all rows in order."""
    run = logged(report.run)
    assert run.inputs
    found = {
        tag.value: {other.key: other.value for other in one.tags}["sha256"]
        for one in run.inputs.dataset_inputs
        for tag in one.tags
        if tag.key == "mlflow.data.context"
    }
    train, held_out = report.data.train, report.data.eval
    assert held_out
    assert found == {
        f"{split}/{part.name}": part.sha256
        for split, of in (("train", train), ("eval", held_out))
        for part in of.parts
    }
    assert run.data.params["data/train/sha256"] == train.sha256
    assert run.data.params["data/train/sums/num_rows"] == "18"
    assert run.data.params["data/train/chat/num_rows"] == "9"


def test_each_source_has_its_curve(report: ReportRecord) -> None:
    """The held-out loss of each source is a metric at every evaluation."""
    history = client_of(report.run).get_metric_history
    run_id = id_of(report.run)
    steps = [point.step for point in history(run_id, "eval/loss")]
    for name in ("sums", "chat"):
        points = history(run_id, f"eval/loss/{name}")
        assert [point.step for point in points] == steps
        assert report.trained.eval_losses[name] in [point.value for point in points]


def test_the_report_shows_sources_oddities_and_a_row(report: ReportRecord) -> None:
    """A table of the sources, the warning with the row's number, and a row of each with marks."""
    path = client_of(report.run).download_artifacts(id_of(report.run), "report.md")
    text = Path(path).read_text()
    assert "| sums | prompt-completion | 18 |" in text
    assert "(rows of chat 11)" in text
    assert "⟦Hello!<|im_end|>⟧" in text
    assert "(rows of chat 11)" in logged(report.run).data.params["data/odd/duplicate"]
    card = (report.saved.folder / "README.md").read_text()
    assert "| training sources | sums (18 rows), chat (9 rows) |" in card


def test_check_shows_them_before(
    config: TrainAdapterConfig, capsys: pytest.CaptureFixture[str], report: ReportRecord
) -> None:
    """The same rows, warnings and marks, without a run."""
    print_forecast(found := forecast_of(config, with_probe=False))
    said = capsys.readouterr().out
    assert "· sums" in said
    assert "(rows of chat 11)" in said
    assert "⟦Hello!<|im_end|>⟧" in said
    assert found.data.shown == report.data.shown
