"""The retraining loop for models that do not continue a text: classifiers, a translator."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from retraining_runs import retraining, rows_of
from tiny_models import tiny_bert, tiny_t5

from flows.cli import runs
from tasks.config import RetrainAdapterConfig
from tasks.errors import UserError
from tasks.records import Outcome, RetrainedRecord

pytestmark = pytest.mark.usefixtures("prefect_server")

CLASSES = {"animal": "fox", "city": "Paris", "money": "card"}


def questions(file: Path, numbers: range, classes: Sequence[str] = tuple(CLASSES)) -> Path:
    """Write texts with their classes, which one word of them tells."""
    rows = (
        {"text": f"The {CLASSES.get(one, 'order')} number {n}, please", "label": one}
        for n in numbers
        for one in classes
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def classifying(base: Path, folder: Path, train: Path, **changes: object) -> RetrainAdapterConfig:
    """Configure a classifier that is judged by its accuracy on twelve rows."""
    held_out = questions(folder / "asked.jsonl", range(100, 104))
    return retraining(
        base,
        folder,
        "classified",
        base_model={"source": str(base), "task": "sequence-classification"},
        data={"train": str(train)},
        lora={"target_modules": "all-linear"},
        training={"num_train_epochs": 6},
        evaluation={
            "rows": str(held_out),
            "sha256": hashlib.sha256(held_out.read_bytes()).hexdigest(),
        },
        decision={"metric": "accuracy", "guards": {"loss": 0.0}} | changes,
    )


def run(config: RetrainAdapterConfig) -> RetrainedRecord:
    """Retrain."""
    record = runs.execute_any(runs.create_run(config))
    assert isinstance(record, RetrainedRecord)
    return record


@pytest.mark.slow
def test_a_classifier_is_retrained_and_promoted(tmp_path: Path) -> None:
    """It is judged by labels, beside the base under its untrained head; then beside the champion.

    A champion for other classes is not compared with, and that is said before anything trains.
    """
    base = tiny_bert(tmp_path / "tiny-bert")
    first = run(classifying(base, tmp_path, questions(tmp_path / "learned.jsonl", range(12))))
    assert first.decision.outcome is Outcome.PROMOTE, first.decision.reason
    assert first.evaluated
    untrained, challenger = first.evaluated.models
    assert {"loss", "accuracy", "macro_f1"} <= challenger.scores.keys()
    assert challenger.scores["accuracy"] > untrained.scores["accuracy"] + 0.3
    assert first.checked.answers == "labels"

    more = questions(tmp_path / "more.jsonl", range(16))
    second = run(classifying(base, tmp_path, more))
    assert second.evaluated
    assert [one.name for one in second.evaluated.models] == ["base", "champion", "challenger"]
    assert second.evaluated.models[1].scores == challenger.scores

    other = questions(tmp_path / "other.jsonl", range(12), [*CLASSES, "paper"])
    with pytest.raises(UserError, match="other classes than these 4 of sequence-classification"):
        run(classifying(base, tmp_path, other))


def test_a_held_out_row_of_an_unknown_class_is_told_before(tmp_path: Path) -> None:
    """The row is named, and nothing is trained."""
    base = tiny_bert(tmp_path / "tiny-bert")
    few = questions(tmp_path / "few.jsonl", range(12), ["animal", "city"])
    with pytest.raises(UserError, match=r"asked\.jsonl, row 3: the label 'money' is not among"):
        run(classifying(base, tmp_path, few))


def test_a_classifier_s_leaked_row_is_one_with_its_class(tmp_path: Path) -> None:
    """Word for word means with the class; the same text under another class leaks, too."""
    base = tiny_bert(tmp_path / "tiny-bert")
    train = questions(tmp_path / "train.jsonl", range(103, 112))
    lines = train.read_text().splitlines()
    lines[0] = lines[0].replace("animal", "city")
    train.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"3 of the 12 rows .*, 2 of them verbatim"):
        run(classifying(base, tmp_path, train))


def tagged(file: Path, numbers: range) -> Path:
    """Write words with their tags, which the words tell."""
    rows = (
        {"tokens": ["The", *words, f"number{n}"], "tags": ["O", *tags, "O"]}
        for n in numbers
        for words, tags in ((["Paris", "France"], ["B-CITY", "I-CITY"]), (["fox"], ["B-ANIMAL"]))
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def tagging(base: Path, folder: Path, held_out: Path) -> RetrainAdapterConfig:
    """Configure a tagger that is judged by its entities."""
    return retraining(
        base,
        folder,
        "tagged",
        base_model={"source": str(base), "task": "token-classification"},
        data={"train": str(tagged(folder / "learned.jsonl", range(16)))},
        lora={"target_modules": "all-linear"},
        training={"num_train_epochs": 6},
        evaluation={
            "rows": str(held_out),
            "sha256": hashlib.sha256(held_out.read_bytes()).hexdigest(),
        },
        decision={"metric": "entity_f1", "guards": {"accuracy": 0.0, "loss": 0.0}},
    )


@pytest.mark.slow
def test_a_tagger_is_retrained_and_promoted(tmp_path: Path) -> None:
    """Words and entities of all rows decide, and the report has them side by side."""
    base = tiny_bert(tmp_path / "tiny-bert")
    record = run(tagging(base, tmp_path, tagged(tmp_path / "asked.jsonl", range(100, 106))))
    assert record.decision.outcome is Outcome.PROMOTE, record.decision.reason
    assert record.evaluated
    untrained, challenger = record.evaluated.models
    assert {"loss", "accuracy", "macro_f1", "entity_f1"} <= challenger.scores.keys()
    assert challenger.scores["entity_f1"] > untrained.scores["entity_f1"] + 0.3
    assert record.checked.answers == "tags"


def test_a_held_out_tag_that_is_not_learned_is_told_before(tmp_path: Path) -> None:
    """The row is named, and nothing is trained."""
    held_out = tagged(tmp_path / "asked.jsonl", range(100, 106))
    held_out.write_text(held_out.read_text().replace("B-ANIMAL", "B-PET"))
    with pytest.raises(
        UserError, match=r"asked\.jsonl, row 2: the label 'B-PET' is not among the 4"
    ):
        run(tagging(tiny_bert(tmp_path / "tiny-bert"), tmp_path, held_out))


def test_a_tag_with_a_space_is_told_before(tmp_path: Path) -> None:
    """Tags are compared with a space between them; one that has some would be two."""
    held_out = tagged(tmp_path / "asked.jsonl", range(100, 106))
    config = tagging(tiny_bert(tmp_path / "tiny-bert"), tmp_path, held_out)
    learned = Path(config.data.sources[0].path)
    learned.write_text(learned.read_text().replace("B-ANIMAL", "B-AN ANIMAL"))
    with pytest.raises(UserError, match="the tag 'B-AN ANIMAL' contains a space"):
        run(config)


@pytest.mark.slow
def test_a_translator_is_retrained(tmp_path: Path) -> None:
    """An encoder with a decoder answers the same rows by generation, and its loss decides."""
    base = tiny_t5(tmp_path / "tiny-t5")
    config = retraining(
        base,
        tmp_path,
        "translated",
        base_model={"source": str(base), "task": "seq2seq"},
        data={"train": str(rows_of(tmp_path / "rows.jsonl", range(24)))},
    )
    record = run(config)
    assert record.decision.outcome is Outcome.PROMOTE, record.decision.reason
    assert record.evaluated
    before, now = record.evaluated.models
    assert now.scores["loss"] < before.scores["loss"]
