"""The retraining loop on a tiny base, with a real Prefect server and a real MLflow registry."""

import time
from pathlib import Path

import pytest
from command_line_runs import run_in_process
from mlflow_runs import client_of, id_of, logged
from prefect.client.orchestration import get_client
from retraining_runs import aliases, events_of, executed, retrained, retraining, rows_of

from flows.cli import runs
from tasks.config import RetrainAdapterConfig
from tasks.records import Outcome, RetrainedRecord
from tasks.tracking import Registry, tracking_uri

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of the data."""
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
    assert {"evaluation/base_loss", "evaluation/challenger_loss"} <= set(
        logged(first.run).data.metrics
    )
    with get_client(sync_client=True) as client:
        found = [a for a in client.read_artifacts() if a.key == "adapter-comparison"]
    text = next(str(a.data) for a in found if str(a.flow_run_id) == first.run.flow_run_id)
    assert text.startswith(f"# {first.decision.reason}")
    assert "data:image/png;base64," in text


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
    assert aliases(config) == {"champion": 1, "challenger": 2}


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
    (remark,) = second.evaluated.remarks
    assert "models:/other-type/1 was trained on the base in float32" in remark
    assert remark in caplog.text
    assert second.run
    with get_client(sync_client=True) as client:
        found = [a for a in client.read_artifacts() if a.key == "adapter-comparison"]
    text = next(str(a.data) for a in found if str(a.flow_run_id) == second.run.flow_run_id)
    assert f"- {remark}\n" in text


def test_others_hear_of_it(
    first: RetrainedRecord, bad: tuple[RetrainAdapterConfig, RetrainedRecord]
) -> None:
    """Prefect has an event for the promotion and one for the rejection, with the version."""
    expected = {("adapterflow.adapter.promoted", 1), ("adapterflow.adapter.rejected", 2)}
    deadline = time.monotonic() + 30
    while not expected <= set(events_of("retrained-sums")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert expected <= seen


def test_a_run_that_failed_at_the_end_evaluates_once(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed retraining takes the kept comparison, and registers no second version."""
    config = retraining(tiny_base, tmp_path, "resumed")
    calls: list[str | None] = []
    real: Callable[..., Any] = evaluation.evaluate

    def counted(adapters: Any, name: str | None, *rest: Any) -> Any:
        calls.append(name)
        return real(adapters, name, *rest)

    def failing(*_: object) -> None:
        raise VerificationError("once")

    monkeypatch.setattr("tasks.retraining.evaluate_adapter.evaluate", counted)
    flow_run = runs.create_run(config)
    with monkeypatch.context() as patch:
        patch.setattr("tasks.tracking.registry.Registry.promote", failing)
        with pytest.raises(VerificationError, match="once"):
            executed(flow_run)
    record = executed(runs.reopen_run(flow_run.id))
    assert record.decision.outcome is Outcome.PROMOTE
    assert calls == [None, "challenger"]
    assert aliases(config) == {"champion": 1}


def test_an_event_that_did_not_arrive_is_sent_again(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Prefect takes no event the step is not done; the next try sends the same one."""
    sent: list[UUID] = []

    def send(events: list[Event]) -> None:
        sent.extend(event.id for event in events)
        if len(sent) == 1:
            raise PassingError("Prefect can't be told")

    monkeypatch.setattr("tasks.retraining.promote_adapter.events.send", send)
    config = retraining(tiny_base, tmp_path, "told-again")
    assert run(config).decision.outcome is Outcome.PROMOTE
    assert len(sent) == 2
    assert sent[0] == sent[1]
    assert aliases(config) == {"champion": 1}


@pytest.mark.slow
def test_a_challenger_that_was_overtaken_is_compared_anew(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who loses the race for the first place is not promoted, and not skipped the next time."""
    config = retraining(tiny_base, tmp_path, "overtaken")
    run(config)
    more = str(rows_of(tmp_path / "more.jsonl", range(60)))
    second = retraining(
        tiny_base, tmp_path, "overtaken", data={"train": more}, training={"num_train_epochs": 6}
    )
    promote = Registry.promote

    def overtaken(registry: Registry, version: int, instead_of: int | None) -> object:
        client = MlflowClient(registry.uri, registry.uri)
        client.delete_registered_model_alias(registry.name, "champion")
        return promote(registry, version, instead_of)

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "promote", overtaken)
        record = run(second)
    assert record.decision.outcome is Outcome.OUTDATED
    assert "the champion was taken away" in record.decision.reason
    assert aliases(second) == {"challenger": 2}
    assert run(second).decision.outcome is Outcome.PROMOTE


def mistakes(folder: Path) -> dict[str, tuple[dict[str, dict[str, object]], str]]:
    """Give what cannot work, and what is said to it."""
    leaking = rows_of(folder / "leaking.jsonl", range(90, 104))
    return {
        "leakage": ({"data": {"train": str(leaking)}}, "4 of the 12 rows .* 4 of them word for"),
        "too few": ({"decision": {"min_rows": 13}}, "has 12 rows, and decision.min_rows is 13"),
        "metric": ({"decision": {"metric": "macro_f1"}}, "there are loss, perplexity, exact"),
        "other rows": ({"evaluation": {"sha256": "0" * 64}}, "has the sha256"),
        "broken": ({"evaluation": {"metrics": {"mine": "json:dumps"}}}, r"metrics\.mine failed"),
    }


@pytest.mark.parametrize("case", ["leakage", "too few", "metric", "other rows", "broken"])
def test_a_mistake_ends_before_anything_is_trained(
    case: str, tiny_base: Path, tmp_path: Path
) -> None:
    """What makes a comparison worthless is said at once, and no version and no run are made."""
    sections, message = mistakes(tmp_path)[case]
    config = retraining(tiny_base, tmp_path, f"mistake-{case.replace(' ', '-')}", **sections)
    with pytest.raises(UserError, match=message):
        run(config)
    assert aliases(config) == {}


def test_a_champion_that_is_lost_is_told_before_anything_is_trained(
    tiny_base: Path, tmp_path: Path
) -> None:
    """A version without files can't be compared with, and that is known before the training."""
    config = retraining(tiny_base, tmp_path, "lost-champion")
    store = tracking_uri(config.tracking)
    client, experiment = ready_client(store, "lost")
    model = client.create_logged_model(experiment, name="adapter")
    registry = Registry(store, "lost-champion")
    registry.register(f"models:/{model.model_id}", None, {})
    registry.promote(1, None)
    with pytest.raises(UserError, match=r"compared with the champion models:/lost-champion/1: "):
        run(config)
    assert aliases(config) == {"champion": 1}
    assert len(registry.versions()) == 1


@pytest.mark.slow
def test_leakage_that_is_allowed_is_reported(tiny_base: Path, tmp_path: Path) -> None:
    """With `report` the retraining goes on, and its record has the rows' numbers."""
    leaking, _ = mistakes(tmp_path)["leakage"]
    allowed: dict[str, dict[str, object]] = {**leaking, "evaluation": {"on_leakage": "report"}}
    record = run(retraining(tiny_base, tmp_path, "leaking", **allowed))
    assert record.checked.leaked_rows == (1, 2, 3, 4)


def answer_when_asked(flow_run_id: UUID, said: dict[str, object]) -> threading.Thread:
    """Resume the run with this input as soon as it waits."""

    def answer() -> None:
        deadline = time.monotonic() + 120
        with get_client(sync_client=True) as client:
            while time.monotonic() < deadline:
                state = client.read_flow_run(flow_run_id).state
                if state and state.is_paused():
                    break
                time.sleep(0.2)
        time.sleep(1)  # the form is saved right after the state
        resume_flow_run(flow_run_id, run_input=said)

    thread = threading.Thread(target=answer)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        ({"approve": True, "comment": "fine"}, Outcome.PROMOTE),
        ({"approve": False, "comment": "not now"}, Outcome.REJECT),
    ],
)
def test_a_person_has_the_last_word(
    said: dict[str, object], outcome: Outcome, tiny_base: Path, tmp_path: Path
) -> None:
    """A promotion waits for approval, and what the approver said is part of the decision."""
    name = f"approval-{outcome}"
    config = retraining(tiny_base, tmp_path, name, decision={"approval": {}})
    flow_run = runs.create_run(config)
    thread = answer_when_asked(flow_run.id, said)
    record = executed(flow_run)
    thread.join()
    assert record.decision.outcome is outcome
    assert str(said["comment"]) in record.decision.reason
    assert ("champion" in aliases(config)) is (outcome is Outcome.PROMOTE)


def test_a_run_that_prefect_would_crash_as_it_waits_does_not_begin(
    tiny_base: Path, tmp_path: Path
) -> None:
    """Approval in a deployment with a concurrency limit is refused before anything is trained."""
    config = retraining(tiny_base, tmp_path, "limited", decision={"approval": {}})
    given = {"config": config.model_dump(mode="json")}
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(flow.retrain_adapter)
        deployment = client.create_deployment(flow_id, "limited", concurrency_limit=1)
        made = client.create_flow_run_from_deployment(deployment, parameters=given)
        client.set_flow_run_state(made.id, Pending())  # as a worker does, which takes the slot
        pending = client.read_flow_run(made.id)
    with pytest.raises(UserError, match="remove concurrency_limit from the deployment"):
        executed(pending)
    assert aliases(config) == {}


def test_who_waits_on_the_embedded_server_is_told_how_to_see_it() -> None:
    """Where the run's own server has no pages, the command that opens some is named."""
    assert approval._where() == "in Prefect's UI"
    with temporary_settings({PREFECT_UI_ENABLED: False}), pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.server.approval.ui_command", lambda: "prefect server start")
        assert approval._where().endswith("prefect server start")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("on_timeout", "outcome"), [("reject", Outcome.UNANSWERED), ("promote", Outcome.PROMOTE)]
)
def test_silence_stands_for_what_was_configured(
    on_timeout: str, outcome: Outcome, tiny_base: Path, tmp_path: Path
) -> None:
    """Where nobody answers in time the stated default is carried out, and the run completes.

    A champion that was made by silence is one; a missed question is asked again the next time.
    """
    approval = {"timeout_minutes": 0.02, "on_timeout": on_timeout}
    config = retraining(
        tiny_base, tmp_path, f"silence-{on_timeout}", decision={"approval": approval}
    )
    flow_run = runs.create_run(config)
    record = executed(flow_run)
    assert record.decision.outcome is outcome
    assert "nobody answered within" in record.decision.reason
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run.id).state
    assert state
    assert state.is_completed()
    again = run(config).decision
    assert again.outcome is (Outcome.UNANSWERED if on_timeout == "reject" else Outcome.SKIP)


@pytest.mark.slow
def test_history_and_rollback_from_the_command_line(
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second champion is shown with its scores, rolled back with a reason, and that is shown."""
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
    assert retrained(second).decision.outcome is Outcome.SKIP
