"""Retrainings that begin with the champion, and must not forget what it knows."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow_runs import client_of, id_of, numbers_of
from retraining_runs import aliases, fixed, retrained, retraining, rows_of

from flows import retrain_adapter
from tasks.config import RetrainAdapterConfig
from tasks.engine.adapters import load_weights
from tasks.errors import UserError
from tasks.records import CheckedRecord, InputsRecord, Outcome, RetrainedRecord
from tasks.retraining.check_retraining import is_outdated

pytestmark = pytest.mark.usefixtures("prefect_server")

NAME = "continued"


def wave(
    base: Path, folder: Path, number: int, **sections: Mapping[str, object]
) -> RetrainAdapterConfig:
    """Configure a wave: the first learns sums, the second to answer them with nonsense."""
    right = number == 1
    train = rows_of(folder / f"wave-{number}.jsonl", range(24), right=right)
    held_out = rows_of(folder / f"held-out-{number}.jsonl", range(100, 112), right=right)
    given = {"train": str(train), **sections.pop("data", {})}
    return retraining(
        base,
        folder,
        NAME,
        data=given,
        registry={"continue_champion": True},
        evaluation={**fixed(held_out), "max_new_tokens": 4},
        **sections,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the data."""
    return tmp_path_factory.mktemp("waves")


@pytest.fixture(scope="module")
def first(prefect_server: None, tiny_base: Path, folder: Path) -> RetrainedRecord:
    """Retrain where there is no champion to begin with."""
    return retrained(wave(tiny_base, folder, 1))


@pytest.fixture(scope="module")
def second(first: RetrainedRecord, tiny_base: Path, folder: Path) -> RetrainedRecord:
    """Learn the opposite, guarded by rows of what the champion knows."""
    older = {**fixed(rows_of(folder / "older.jsonl", range(200, 212))), "guards": {"loss": 0.1}}
    return retrained(wave(tiny_base, folder, 2, decision={"older": older}))


def test_the_first_begins_fresh(first: RetrainedRecord) -> None:
    """Without a champion the training is that of a fresh adapter, which then is the champion."""
    assert first.decision.outcome is Outcome.PROMOTE, first.decision.reason
    assert first.checked.source is None
    assert first.report
    assert first.report.trained.injected.logit_difference == 0


def test_the_next_begins_with_the_champion(first: RetrainedRecord, second: RetrainedRecord) -> None:
    """Its first weights are the champion's, and the version says so."""
    assert first.report
    assert second.report
    assert second.version
    injected = second.report.trained.injected
    assert injected.source_logit_difference == 0
    began = load_weights(injected.initial_weights.path)
    assert all(
        began[name].equal(weight)
        for name, weight in load_weights(first.report.trained.weights.path).items()
    )
    tags = second.version.tags
    assert tags["lineage.began_as"] == f"models:/{NAME}/1"
    assert tags["lineage.began_as_sha256"] == first.report.saved.weights.sha256
    assert tags["lineage.began_as_data_sha256"] == first.report.data.train.sha256
    assert second.run
    text = client_of(second.run).get_run(id_of(second.run)).data.tags["mlflow.note.content"]
    assert f"- **Begins with**: `models:/{NAME}/1`" in text


def test_what_forgets_is_not_promoted(first: RetrainedRecord, second: RetrainedRecord) -> None:
    """Better on the rows that decide, it is worse on the older ones by more than is tolerated."""
    decision = second.decision
    assert decision.difference is not None
    assert decision.difference > 0
    assert decision.outcome is Outcome.REJECT
    assert "but the guard metric loss on the older rows went from" in decision.reason
    (guard,) = decision.guards
    assert guard.is_on_older_rows
    assert not guard.holds
    assert second.evaluated
    assert second.evaluated.older
    assert [one.name for one in second.evaluated.older.models] == ["champion", "challenger"]
    assert second.run
    assert "evaluation/older_champion_loss" in numbers_of(second.run)
    files = {one.path for one in client_of(second.run).list_artifacts(id_of(second.run))}
    assert "comparison.md" in files


def test_the_report_says_how_it_began(second: RetrainedRecord) -> None:
    """Who reads the decision sees the champion that was continued, and the older rows."""
    assert second.run
    text = client_of(second.run).download_artifacts(id_of(second.run), "comparison.md")
    report = Path(text).read_text()
    assert "On 12 older rows:" in report
    assert "- guard loss on the older rows: " in report
    assert "**violated**" in report
    assert f"- the challenger began as models:/{NAME}/1, sha256" in report


def test_rows_that_the_champion_learned_are_skipped(
    first: RetrainedRecord, tiny_base: Path, folder: Path
) -> None:
    """To begin with the champion would only repeat them; a rejected attempt is not repeated."""
    again = retrained(wave(tiny_base, folder, 1))
    assert again.decision.outcome is Outcome.SKIP
    assert "those of version 1" in again.decision.reason


def test_a_rank_that_is_not_the_champions_is_told_before(
    first: RetrainedRecord, tiny_base: Path, folder: Path
) -> None:
    """A configuration that another adapter would fit is one message."""
    config = wave(tiny_base, folder, 2, lora={"r": 4})
    with pytest.raises(UserError, match=f"models:/{NAME}/1 begins with .* r is 4, and it has 8"):
        retrained(config)
    assert aliases(config)["champion"] == 1


def test_older_rows_that_are_trained_on_are_told_before(
    first: RetrainedRecord, tiny_base: Path, folder: Path
) -> None:
    """They would prove nothing; nor does a metric that these answers lack."""
    trained = fixed(folder / "wave-2.jsonl")
    older = {**trained, "guards": {"loss": 0.1}}
    with pytest.raises(UserError, match=r"rows of .*wave-2\.jsonl occur in the training data"):
        retrained(wave(tiny_base, folder, 2, decision={"older": older}))
    older = {**fixed(folder / "held-out-1.jsonl"), "guards": {"accuracy": 0.1}}
    with pytest.raises(UserError, match=r"decision\.older\.guards names the metric 'accuracy'"):
        retrained(wave(tiny_base, folder, 2, decision={"older": older}))
    older = {**fixed(folder / "held-out-1.jsonl"), "guards": {"loss": 0.1}, "sha256": "0" * 64}
    with pytest.raises(UserError, match=r"but decision\.older\.sha256 is 0+; scores"):
        retrained(wave(tiny_base, folder, 2, decision={"older": older}))


def test_rows_of_the_champion_are_replayed(
    first: RetrainedRecord, tiny_base: Path, folder: Path
) -> None:
    """Half of the rows that it learned from are among the training rows, and counted apart.

    The same again is skipped, and rows that have changed since are one message.
    """
    assert first.report
    more = rows_of(folder / "more.jsonl", range(300, 312), right=False)
    config = wave(tiny_base, folder, 2, data={"train": str(more), "replay": 0.5})
    record = retrained(config)
    assert record.report
    data = record.report.data
    assert [(one.name, one.num_rows) for one in data.train.parts] == [
        ("more", 9),
        ("replayed-wave-1", 9),
    ]
    assert data.replayed
    assert data.replayed.sources == (first.report.data.train.sha256,)
    assert record.version
    assert record.version.tags["lineage.own_rows_sha256"] == data.train.parts[0].sha256
    assert retrained(config).decision.outcome is Outcome.SKIP

    file = folder / "wave-1.jsonl"
    kept = file.read_text()
    file.write_text(kept.replace("What is 3 plus", "How much is 3 plus"))
    other = wave(tiny_base, folder, 2, data={"train": str(more), "replay": 0.25})
    with pytest.raises(UserError, match=r"wave-1\.jsonl has other rows than the adapter"):
        retrained(other)
    file.write_text(kept)


@pytest.mark.slow
def test_a_champion_that_was_made_meanwhile_is_continued(
    second: RetrainedRecord, tiny_base: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a run waits for its device, another one promotes: it begins with that champion."""
    assert second.run
    client = MlflowClient(second.run.tracking_uri, second.run.tracking_uri)
    before = []

    def meanwhile(
        checked: CheckedRecord, config: RetrainAdapterConfig, inputs: InputsRecord
    ) -> bool:
        assert inputs.lora.source
        before.append(inputs.lora.source.reference)
        client.set_registered_model_alias(NAME, "champion", "2")
        return is_outdated(checked, config, inputs)

    rows = rows_of(folder / "meanwhile.jsonl", range(400, 424), right=False)
    with monkeypatch.context() as patch:
        patch.setattr(retrain_adapter, "is_outdated", meanwhile)
        record = retrained(wave(tiny_base, folder, 2, data={"train": str(rows)}))
    client.set_registered_model_alias(NAME, "champion", "1")
    assert before == [f"models:/{NAME}/1"]
    assert record.checked.source
    assert record.checked.source.reference == f"models:/{NAME}/2"
    assert record.checked.champion
    assert record.checked.champion.version == 2
    assert record.report
    source = record.report.trained.injected.lora.source
    assert source == record.checked.source
