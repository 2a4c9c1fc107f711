"""The retraining loop on a tiny base, with a real Prefect server and a real MLflow registry."""

import time
from pathlib import Path

import pytest
from artifacts import artifacts_of
from command_line_runs import run_in_process
from mlflow_runs import client_of, id_of, numbers_of
from prefect.client.orchestration import get_client
from retraining_runs import aliases, events_of, executed, retrained, retraining, rows_of
from running_stack import wait_until

from flows.cli import runs
from tasks.config import RetrainAdapterConfig
from tasks.records import Outcome, RetrainedRecord
from tasks.tracking import Registry, tracking_uri

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the data."""
    return tmp_path_factory.mktemp("retraining")


@pytest.fixture(scope="module")
def config(tiny_base: Path, folder: Path) -> RetrainAdapterConfig:
    """Configure the first retraining."""
    return retraining(tiny_base, folder, "retrained-sums")


@pytest.fixture(scope="module")
def first(prefect_server: None, config: RetrainAdapterConfig) -> RetrainedRecord:
    """Retrain where there is no champion yet."""
    return retrained(config)


@pytest.fixture(scope="module")
def bad(
    first: RetrainedRecord, tiny_base: Path, folder: Path
) -> tuple[RetrainAdapterConfig, RetrainedRecord]:
    """Retrain on nonsense."""
    nonsense = rows_of(folder / "nonsense.jsonl", range(24), right=False)
    config = retraining(tiny_base, folder, "retrained-sums", data={"train": str(nonsense)})
    return config, retrained(config)


def test_the_first_challenger_has_to_beat_the_base(
    first: RetrainedRecord, config: RetrainAdapterConfig
) -> None:
    """Without a champion the base is compared with, on the same rows, and loses its place."""
    assert first.decision.outcome is Outcome.PROMOTE
    assert first.evaluated
    assert [model.name for model in first.evaluated.models] == ["base", "challenger"]
    assert "against the base's" in first.decision.reason
    assert aliases(config)["champion"] == 1


def test_a_version_tells_what_it_was_made_of(
    first: RetrainedRecord, config: RetrainAdapterConfig
) -> None:
    """Data, base, configuration, commit, packages, hardware and flow run are its tags."""
    tags = Registry(tracking_uri(config.tracking), "retrained-sums").versions()[0].tags
    assert first.report
    assert tags["lineage.data_sha256"] == first.report.data.train.sha256
    assert tags["lineage.configuration_sha256"] == config.sha256()
    assert tags["lineage.base_fingerprint"] == first.report.saved.base.fingerprint
    assert tags["lineage.prefect_flow_run_id"] == first.report.run.flow_run_id
    loaded = (tags["lineage.base_dtype"], tags["lineage.base_quantization"])
    assert loaded == ("float32", "none")
    assert {"lineage.git_dirty", "lineage.hardware", "lineage.packages_sha256"} <= set(tags)
    assert len(tags["lineage.git_commit"]) == 40


def test_mlflow_and_prefect_show_the_comparison(first: RetrainedRecord) -> None:
    """The run has each model's scores, the rows and the picture; Prefect has the decision."""
    assert first.run
    files = {file.path for file in client_of(first.run).list_artifacts(id_of(first.run))}
    assert {"comparison.md", "comparison.png", "comparison.json", "package_versions.txt"} <= files
    assert {"evaluation/base_loss", "evaluation/challenger_loss"} <= set(numbers_of(first.run))
    found = artifacts_of(first.run.flow_run_id)
    (text,) = [str(one.data) for one in found if one.key == "adapter-comparison"]
    assert text.startswith(f"# Promoted\n\nP{first.decision.reason[1:]}\n")
    assert "data:image/png;base64," in text


def test_version_and_model_are_described(
    first: RetrainedRecord, config: RetrainAdapterConfig
) -> None:
    """Data, base, score, approval and Prefect run are in both; the version's tags are few."""
    assert first.run
    client = client_of(first.run)
    version = client.get_model_version("retrained-sums", "1")
    model = client.get_registered_model("retrained-sums")
    for text in map(str, (version.description, model.description)):
        assert "- **Data**: `first.jsonl`, 18 rows" in text
        assert "- **Base**: `tests/tiny-llama`" in text
        assert "- **Score**: loss on 12 held-out rows: challenger " in text
        assert f"- **Decision**: {first.decision.reason}" in text
        assert "- **Approval**: not asked for" in text
        assert "- **Prefect run**: " in text
    assert "The champion is version 1." in str(model.description)
    assert len(version.tags) <= 8


def test_unchanged_data_is_skipped(first: RetrainedRecord, config: RetrainAdapterConfig) -> None:
    """The same base, data and configuration train nothing, and say which version has them."""
    flow_run = runs.create_run(config)
    again = executed(flow_run)
    assert again.decision.outcome is Outcome.SKIP
    assert "those of version 1" in again.decision.reason
    assert again.run is None
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run.id).state
    assert state
    assert (state.name, state.message) == ("Skipped", again.decision.reason)


def test_forced_past_the_skip_nothing_is_promoted(
    first: RetrainedRecord, tiny_base: Path, tmp_path: Path
) -> None:
    """A forced retraining on unchanged data trains and compares, and the champion stays."""
    config = retraining(tiny_base, tmp_path, "forced")
    retrained(config)
    forced = retrained(config, force=True)
    assert forced.decision.outcome is Outcome.REJECT
    assert "version 1 has the same data and configuration" in forced.decision.reason
    assert aliases(config) == {"champion": 1}
    assert "adapterflow promote forced 2 --reason" in forced.decision.reason


def test_a_bad_challenger_is_rejected(
    bad: tuple[RetrainAdapterConfig, RetrainedRecord],
) -> None:
    """Trained on nonsense, it loses against the champion, which is scored anew beside it."""
    config, record = bad
    assert record.decision.outcome is Outcome.REJECT
    assert record.evaluated
    assert [m.name for m in record.evaluated.models] == ["base", "champion", "challenger"]
    assert "against the champion's" in record.decision.reason
    assert aliases(config)["champion"] == 1


def test_the_champion_scores_as_when_it_was_challenger(
    first: RetrainedRecord, bad: tuple[RetrainAdapterConfig, RetrainedRecord]
) -> None:
    """From the registry and beside another adapter, the champion's scores are the very same."""
    then, now = first.evaluated, bad[1].evaluated
    assert then
    assert now
    challenger, champion = then.model("challenger"), now.model("champion")
    assert challenger
    assert champion
    assert champion.weights_sha256 == challenger.weights_sha256
    assert champion.scores == challenger.scores


@pytest.mark.slow
def test_a_champion_on_a_base_that_is_loaded_otherwise_is_told(
    tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Scored on bfloat16 where it was trained on float32, the champion may lose by that alone."""
    retrained(retraining(tiny_base, tmp_path, "other-type"))
    other = {"base_model": {"dtype": "bfloat16"}, "decision": {"metric": "exact_match"}}
    second = retrained(retraining(tiny_base, tmp_path, "other-type", **other))
    assert second.evaluated
    (warning,) = second.evaluated.warnings
    assert "models:/other-type/1 was trained on the base in float32" in warning
    assert warning in caplog.text
    assert second.run
    found = artifacts_of(second.run.flow_run_id)
    (text,) = [str(one.data) for one in found if one.key == "adapter-comparison"]
    assert f"- {warning}\n" in text


def test_others_hear_of_it(
    first: RetrainedRecord, bad: tuple[RetrainAdapterConfig, RetrainedRecord]
) -> None:
    """Prefect has an event for the promotion and one for the rejection, with the version."""
    expected = {("adapterflow.adapter.promoted", 1), ("adapterflow.adapter.rejected", 2)}
    deadline = time.monotonic() + 240
    while not expected <= set(events_of("retrained-sums")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert expected <= set(events_of("retrained-sums"))


@pytest.mark.slow
def test_history_rollback_and_promotion_from_the_command_line(
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second champion is shown with its scores, rolled back with a reason, and that is shown.

    Whoever promotes it by hand sends the same event.
    """
    monkeypatch.setenv("COLUMNS", "200")
    retrained(retraining(tiny_base, tmp_path, "rolled"))
    more = str(rows_of(tmp_path / "more.jsonl", range(60)))
    longer = {"num_train_epochs": 6}
    second = retraining(tiny_base, tmp_path, "rolled", data={"train": more}, training=longer)
    assert retrained(second).decision.outcome is Outcome.PROMOTE
    assert aliases(second) == {"champion": 2, "previous": 1}
    status, out, _ = run_in_process(
        capsys, monkeypatch, "rollback", "rolled", "--reason", "rounds wrongly"
    )
    assert (status, out) == (0, "rolled: version 1 is champion again, in place of version 2\n")
    _, out, _ = run_in_process(capsys, monkeypatch, "history", "rolled")
    assert "rounds wrongly" in out
    assert "promoted: loss" in out
    by_hand = ("promote", "rolled", "2", "--reason", "rounds well after all")
    _, out, _ = run_in_process(capsys, monkeypatch, *by_hand)
    assert out == "rolled: version 2 is champion now, in place of version 1\n"
    _, out, _ = run_in_process(capsys, monkeypatch, *by_hand)
    assert out == "rolled: version 2 is champion already; nothing changed\n"
    assert aliases(second) == {"champion": 2, "previous": 1}
    promotions = [("adapterflow.adapter.promoted", version) for version in (1, 2, 2)]
    wait_until(lambda: sorted(events_of("rolled")) == promotions, "the events")
    status, _, problem = run_in_process(
        capsys, monkeypatch, "promote", "rolled", "9", "--reason", "why not"
    )
    assert status == 2
    assert "versions: 1, 2" in problem
    assert retrained(second).decision.outcome is Outcome.SKIP
