"""What is known of a retraining's end before anything is trained."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from plain_adapters import lora_folder
from retraining_runs import retraining

from tasks.engine.adapters import AdapterFolder, find_adapter, resolve_lora
from tasks.engine.base import find_base
from tasks.engine.scoring.held_out import HeldOut, open_held_out
from tasks.errors import UserError
from tasks.records import FileRecord, Outcome, SourceRecord, VersionRecord
from tasks.retraining import check_retraining, lineage
from tasks.retraining.check_retraining import (
    _check_beside,
    _check_count,
    _configuration_sha256,
    _unchanged_since,
    _version_made_from,
)
from tasks.tracking import OUTCOME_TAG


def repeating(folder: Path, count: int) -> HeldOut:
    """Open twelve sums, of which so many are asked once more in other dress."""
    config = retraining(folder / "no-base", folder, "sums")
    file = folder / "held_out.jsonl"
    lines = file.read_text().splitlines()
    again = [line.replace("What is", "WHAT is ") for line in lines[:count]]
    file.write_text("\n".join([*lines, *again]) + "\n")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    evaluation = config.evaluation.model_copy(update={"sha256": digest})
    return open_held_out(evaluation, config.data, config.base_model.task)


def test_a_question_that_is_repeated_is_one_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Copies do not make up for rows that are lacking, and are reported where there are enough."""
    with pytest.raises(UserError, match=r"15 rows \(3 repeat another's .*min_rows is 13"):
        _check_count(repeating(tmp_path, 3), 13)
    assert not caplog.messages
    _check_count(repeating(tmp_path, 3), 12)
    assert "15 rows (3 repeat another's question)" in caplog.text
    caplog.clear()
    _check_count(repeating(tmp_path, 0), 12)
    assert not caplog.messages


def test_what_is_not_read_of_the_rows_that_decide_is_known(tmp_path: Path) -> None:
    """Other columns are counted; one that changes what a row means is refused, as in training."""
    config = retraining(tmp_path / "no-base", tmp_path, "sums")
    file = tmp_path / "held_out.jsonl"
    plain = file.read_text()

    def opened(column: str) -> HeldOut:
        file.write_text(plain.replace("{", f"{{{column}, ", 1))
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        evaluation = config.evaluation.model_copy(update={"sha256": digest})
        return open_held_out(evaluation, config.data, config.base_model.task)

    assert opened('"id": 7').unread == {"id": 1}
    with pytest.raises(UserError, match=r"held_out\.jsonl, row 1: there is a column kto_tag"):
        opened('"kto_tag": false')


def version(number: int, **tags: str) -> VersionRecord:
    """Return a version of a registered model."""
    return VersionRecord(
        name="sums", version=number, created_ms=0, run_id=None, source="", aliases=(), tags=tags
    )


@pytest.mark.parametrize("outcome", Outcome)
def test_only_a_verdict_makes_a_retraining_superfluous(outcome: Outcome) -> None:
    """Overtaken, or put to a person who did not answer, a challenger is no reason to skip."""
    made = version(1, data="x", **{OUTCOME_TAG: outcome.value})
    is_open = outcome in (Outcome.OUTDATED, Outcome.UNANSWERED)
    assert _version_made_from([made], {"data": "x"}) == (None if is_open else 1)
    assert _version_made_from([made], {"data": "y"}) is None
    assert _version_made_from([version(1, data="x")], {"data": "x"}) is None


def test_another_metric_of_the_same_name_is_another_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code of the user's own metrics is part of what a version is known by."""
    file = tmp_path / "own_metric_of_test.py"
    file.write_text("def score(answer, expected):\n    return 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = retraining(tmp_path / "no-base", tmp_path, "sums")
    own = config.evaluation.model_copy(update={"metrics": {"own": "own_metric_of_test:score"}})
    config = config.model_copy(update={"evaluation": own})
    open_held_out(own, config.data, config.base_model.task)
    before = _configuration_sha256(config)
    file.write_text("def score(answer, expected):\n    return 0.0\n")
    assert _configuration_sha256(config) != before


@pytest.fixture(scope="module")
def champion(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> AdapterFolder:
    """Save a LoRA of the tiny base."""
    return find_adapter(lora_folder(tiny_base, tmp_path_factory.mktemp("champion") / "adapter"))


@pytest.fixture
def _registered(champion: AdapterFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the registry have this champion."""

    @contextmanager
    def found(*_: object) -> Iterator[list[AdapterFolder]]:
        yield [champion]

    monkeypatch.setattr(check_retraining, "found_adapters", found)


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({}, None),
        ({"lora": {"r": None, "method": "ia3"}}, r"champion \(lora\), challenger \(ia3\)"),
        ({"base_model": {"new_tokens": ["<new>"]}}, "challenger trained single tokens"),
    ],
    ids=["the same kind", "another method", "new tokens"],
)
def test_a_champion_that_cannot_share_the_base_is_told_before_training(
    tiny_base: Path,
    tmp_path: Path,
    sections: Mapping[str, Mapping[str, object]],
    message: str | None,
) -> None:
    """Both are scored on one base, so what PEFT can't put on it together is no comparison."""
    config = retraining(tiny_base, tmp_path, "sums", **sections)
    base = find_base(config.base_model)
    lora = resolve_lora(config.lora, base)
    if message is None:
        _check_beside(version(1), base, config, lora)
        return
    with pytest.raises(UserError, match=rf"sums/1 can't be compared with: .*{message}"):
        _check_beside(version(1), base, config, lora)


def test_no_method_may_train_the_base_in_a_retraining(tmp_path: Path) -> None:
    """An option of a method counts as LoRA's own setting does."""
    with pytest.raises(ValueError, match=r"bias all trains biases of the base"):
        retraining(
            tmp_path,
            tmp_path,
            "sums",
            lora={"r": None, "method": "oft", "options": {"bias": "all"}},
        )


def test_what_the_champion_learned_is_not_learned_again() -> None:
    """A training that begins with a version is superfluous if that version learned the rows.

    Whatever it began with itself, and whatever was replayed: only the run's own rows count. Another
    version, or other rows, is no reason.
    """
    weights = FileRecord(path=Path("a"), sha256="w1", size_bytes=1)
    source = SourceRecord(given="", reference="", weights=weights, config=weights)
    made_of = {
        lineage.DATA: "rows and replayed ones",
        lineage.TOKENS: "t2",
        lineage.SOURCE: "w1",
        lineage.OWN_ROWS: "rows",
        lineage.CODE: "c",
    }
    promoted = {OUTCOME_TAG: Outcome.PROMOTE.value}
    own = {lineage.OWN_ROWS: "rows", lineage.CODE: "c", lineage.SOURCE: "w0"}
    champion = version(1, **own, **promoted, **{lineage.ADAPTER: "w1"})
    assert _unchanged_since([champion], made_of, source) == 1
    assert _unchanged_since([champion], made_of, None) is None
    assert _unchanged_since([champion], made_of | {lineage.OWN_ROWS: "other"}, source) is None
    other = version(1, **own, **promoted, **{lineage.ADAPTER: "w2"})
    assert _unchanged_since([other], made_of, source) is None
    assert _unchanged_since([version(2, **made_of, **promoted)], made_of, source) == 2
