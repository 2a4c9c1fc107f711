"""Pairs through the whole flow: MLflow, report, card, manifest and samples say what was learned."""

import json
from pathlib import Path

import pytest
from flow_runs import tiny_config
from mlflow_runs import client_of, id_of, logged

from flows.cli import runs
from flows.cli.check import forecast_of, print_forecast
from tasks.config import TrainAdapterConfig
from tasks.records import ReportRecord

pytestmark = pytest.mark.slow
NUM_PAIRS = 24


@pytest.fixture(scope="module")
def config(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainAdapterConfig:
    """Configure a run on pairs of a right and a wrong sum."""
    rows = [
        {"prompt": f"What is {i} plus {i}?", "chosen": f"{2 * i}", "rejected": f"It is {2 * i + 1}"}
        for i in range(NUM_PAIRS)
    ]
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    losses = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1, 0.5]}
    training: dict[str, object] = {"objective": "dpo", "preferences": losses}
    return tiny_config(tiny_base, file, training=training)


@pytest.fixture(scope="module")
def judged_config(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainAdapterConfig:
    """Configure a run on sums that are each right or wrong."""
    rows = [
        {"prompt": f"What is {i} plus {i}?", "completion": f"{2 * i + i % 2}", "label": i % 2 == 0}
        for i in range(NUM_PAIRS)
    ]
    file = tmp_path_factory.mktemp("judged") / "judged.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tiny_config(tiny_base, file, training={"objective": "kto"})


@pytest.fixture(scope="module")
def report(prefect_server: None, config: TrainAdapterConfig) -> ReportRecord:
    """Run it once for this module."""
    return runs.execute(runs.create_run(config))


def test_the_record_has_curves_and_settings(report: ReportRecord) -> None:
    """Rewards in training and on held-out pairs are curves; the losses are parameters."""
    history = client_of(report.run).get_metric_history
    steps = [point.step for point in history(id_of(report.run), "train/loss")]
    for name in ("chosen", "rejected", "margins", "accuracies"):
        points = history(id_of(report.run), f"train/rewards/{name}")
        assert [point.step for point in points] == steps
        assert history(id_of(report.run), f"eval/rewards/{name}")
    params = logged(report.run).data.params
    assert params["training/objective"] == "dpo"
    assert params["training/preferences/beta"] == "0.1"
    assert json.loads(params["training/preferences/loss_type"]) == ["sigmoid", "sft"]
    assert report.trained.preferences is not None
    sha256 = report.trained.preferences.reference_sha256
    assert params["training/preferences/reference_sha256"] == sha256
    assert report.trained.preferences.num_reference_pairs == NUM_PAIRS


def test_what_is_saved_says_what_was_learned(report: ReportRecord) -> None:
    """Report, model card and manifest name objective, losses, beta and the answers' lengths."""
    how = "dpo, sigmoid + 0.5 sft, beta 0.1"
    path = client_of(report.run).download_artifacts(id_of(report.run), "report.md")
    text = Path(path).read_text()
    assert f"- learned from pairs: {how}" in text
    assert "- mean tokens of answers: chosen " in text
    assert "rejected: ⟦It is " in text
    assert "rewards/accuracies" in text
    card = (report.saved.folder / "README.md").read_text()
    assert how in card
    assert "| reference | the model before training |" in card
    manifest = json.loads((report.saved.folder / "manifest.json").read_text())
    assert manifest["preferences"]["objective"] == "dpo"
    assert manifest["preferences"]["settings"]["loss_weights"] == [1.0, 0.5]


def test_the_chosen_answer_is_expected_of_samples(report: ReportRecord) -> None:
    """Held-out pairs are questions whose answer is the chosen one."""
    expected = [one.expected for one in report.loaded.samples]
    assert len(expected) == 3
    assert all(one.isdecimal() for one in expected)


def test_check_forecasts_it(
    config: TrainAdapterConfig, report: ReportRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps, pairs and the time of the reference are known before; the first pair is shown."""
    found = forecast_of(config, with_probe=True)
    assert found.num_steps == report.trained.num_steps
    assert found.probe is not None
    assert found.probe.batching == report.trained.batching == "shared-prefix"
    assert found.probe.seconds_reference > 0
    print_forecast(found)
    shown = capsys.readouterr().out
    assert "18 rows" in shown
    assert "preferences (dpo, sigmoid + 0.5 sft, beta 0.1)" in shown
    assert "rejected: ⟦It is 1" in shown


def test_judged_answers_go_through_the_whole_flow(
    prefect_server: None, judged_config: TrainAdapterConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Report, card and MLflow say so; samples are of prompts whose answer is desirable."""
    report = runs.execute(runs.create_run(judged_config))
    how = "kto, kto, beta 0.1"
    path = client_of(report.run).download_artifacts(id_of(report.run), "report.md")
    text = Path(path).read_text()
    assert f"- learned from judged answers: {how}" in text
    assert "- reference: the model before training, of " in text
    card = (report.saved.folder / "README.md").read_text()
    assert f"preferences: desirable answers rather than undesirable ones ({how})" in card
    names = client_of(report.run).get_run(id_of(report.run)).data.metrics
    assert {"train/kl", "train/rewards/margins", "eval/kl", "eval/lengths/chosen"} <= names.keys()
    assert all(int(one.expected) % 2 == 0 for one in report.loaded.samples)
    print_forecast(forecast_of(judged_config, with_probe=False))
    shown = capsys.readouterr().out
    assert f"preferences ({how})" in shown
    assert "\nlabel: " in shown
