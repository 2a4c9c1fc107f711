"""Several sources become one split: by their weights, in an order that the seed alone decides."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tasks.config import DataSettings, RowFormat, Task
from tasks.engine.data.rows.conversations import Message
from tasks.engine.data.rows.row_sources import Row
from tasks.engine.data.splits.examples import (
    ExampleSets,
    check_first_rows,
    content_sha256,
    read_examples,
)
from tasks.engine.data.splits.mixing import interleaved, rows_to_take
from tasks.errors import UserError


def rows_of(name: str, count: int) -> list[Row]:
    """Make that many different rows."""
    return [{"prompt": f"{name} {number}", "completion": "b"} for number in range(count)]


def source(folder: Path, name: str, rows: list[Row], **more: object) -> dict[str, object]:
    """Write the rows of a source, and return its settings."""
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"path": str(path), **more}


def read(sources: list[dict[str, object]], seed: int = 0, **more: object) -> ExampleSets:
    """Read the sources, of which nothing is held out unless `more` says so."""
    settings = DataSettings.model_validate({"train": sources, "eval_fraction": 0, **more})
    return read_examples(settings, seed)


def prompts(sets: ExampleSets, *, held_out: bool = False) -> list[str]:
    """Return the prompts of a split, in order."""
    split = sets.eval if held_out else sets.train
    return [one.question for one in split.examples] if split else []


@pytest.mark.parametrize(
    ("available", "weights", "at_most", "expected"),
    [
        ((5, 7), (None, None), None, [5, 7]),
        ((100, 100), (3, 1), None, [100, 33]),
        ((30, 100), (3, 1), None, [30, 10]),
        ((100, 100), (0.5, 0.5), None, [100, 100]),
        ((10, 1000), (0.1, 0.2), None, [10, 20]),
        ((100, 100), (1000, 1), None, [100, 1]),
        ((100, 100), (3, 1), 40, [30, 10]),
        ((5, 7), (None, None), 6, [3, 3]),
        ((3, 3, 3), (1, 1, 1), 4, [2, 1, 1]),
        ((9,), (None,), 20, [9]),
    ],
)
def test_as_many_rows_as_the_weights_allow(
    available: tuple[int, ...],
    weights: tuple[float | None, ...],
    at_most: int | None,
    expected: list[int],
) -> None:
    """The source that runs out first gives all, the others their share; a bound keeps shares."""
    assert rows_to_take(available, weights, at_most) == expected


def test_the_proportions_are_those_of_the_weights(tmp_path: Path) -> None:
    """Each row is drawn once at most, and the counts are exact."""
    sources = [
        source(tmp_path, "a", rows_of("a", 40), weight=1),
        source(tmp_path, "b", rows_of("b", 40), weight=4),
        source(tmp_path, "c", rows_of("c", 40), weight=0),
    ]
    found = prompts(read(sources))
    assert Counter(one[0] for one in found) == {"a": 10, "b": 40}
    assert len(set(found)) == 50


def test_the_mix_is_repeatable(tmp_path: Path) -> None:
    """Equal seeds give equal rows in equal order; another seed gives another draw and order."""
    sources = [
        source(tmp_path, name, rows_of(name, 30), weight=weight)
        for name, weight in (("a", 1), ("b", 2))
    ]
    once, again, other = (read(sources, seed, eval_fraction=0.2) for seed in (1, 1, 2))
    assert once == again
    assert prompts(once) == prompts(again)
    assert prompts(once, held_out=True) == prompts(again, held_out=True)
    assert set(prompts(once)) != set(prompts(other))


def test_sources_are_mixed_and_not_queued(tmp_path: Path) -> None:
    """Rows of one source are everywhere, and among themselves in the order of the file."""
    sources = [source(tmp_path, name, rows_of(name, 50)) for name in "ab"]
    found = prompts(read(sources))
    assert 10 < sum(one.startswith("a") for one in found[:50]) < 40
    assert [one for one in found if one.startswith("a")] == [f"a {n}" for n in range(50)]
    assert list(interleaved([2, 0, 1], 5)) == list(interleaved([2, 0, 1], 5))


def test_each_source_holds_out_its_share(tmp_path: Path) -> None:
    """The share is that of each source, and the same whatever the other sources are."""
    sources = [
        source(tmp_path, name, rows_of(name, count)) for name, count in (("a", 40), ("b", 8))
    ]
    both = read(sources, eval_fraction=0.25)
    assert Counter(one[0] for one in prompts(both, held_out=True)) == {"a": 10, "b": 2}
    assert not set(prompts(both)) & set(prompts(both, held_out=True))
    alone = read(sources[:1], eval_fraction=0.25)
    assert both.eval
    assert alone.eval
    assert both.eval.parts[0].sha256 == alone.eval.sha256


def test_a_source_can_be_bounded(tmp_path: Path) -> None:
    """`max_rows` rows are used, of which some are held out; `max_train_rows` bounds the sum."""
    sources = [
        source(tmp_path, "a", rows_of("a", 100), max_rows=20),
        source(tmp_path, "b", rows_of("b", 30)),
    ]
    sets = read(sources, eval_fraction=0.5)
    assert [len(part.examples) for part in sets.train.parts] == [10, 15]
    fewer = read(sources, eval_fraction=0.5, max_train_rows=5)
    assert [len(part.examples) for part in fewer.train.parts] == [2, 3]


def test_the_hash_is_that_of_the_rows_in_order(tmp_path: Path) -> None:
    """The mix is known by all of its rows, each source by its own."""
    rows = {name: rows_of(name, 9) for name in "ab"}
    sets = read([source(tmp_path, name, of) for name, of in rows.items()])
    in_order: list[Row] = [{"prompt": one, "completion": "b"} for one in prompts(sets)]
    assert sets.train.sha256 == content_sha256(in_order)
    assert [part.sha256 for part in sets.train.parts] == [
        content_sha256(of) for of in rows.values()
    ]


def test_one_source_in_a_list_is_as_without(tmp_path: Path) -> None:
    """A list of one is the source itself, in the order of its file."""
    one = source(tmp_path, "a", rows_of("a", 9))
    sets = read([one], eval_fraction=0.3)
    settings = DataSettings.model_validate({"train": one["path"], "eval_fraction": 0.3})
    assert sets == read_examples(settings, 0)
    assert not sets.train.parts


def test_each_source_has_its_own_format_and_columns(tmp_path: Path) -> None:
    """Rows of different formats become conversations alike; names of columns are per source."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    sources = [
        source(tmp_path, "chat", [{"messages": turns}]),
        source(
            tmp_path,
            "questions",
            [{"question": "a", "prompt": "id 1", "answer": "b"}],
            columns={"prompt": "question", "completion": "answer"},
        ),
        source(tmp_path, "both", [{"text": "t", "messages": turns}], format="text"),
    ]
    sets = read(sources)
    by_name = {part.name: part for part in sets.train.parts}
    expected = (Message("user", "a"), Message("assistant", "b"))
    assert by_name["chat"].examples[0].messages == expected
    assert by_name["questions"].examples[0].messages == expected
    assert by_name["both"].row_format is RowFormat.TEXT
    assert sets.unread["prompt (not question)"] == 1


LABELED: list[Row] = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
TAGGED: list[Row] = [{"tokens": ["a"], "tags": ["x"]}]


@pytest.mark.parametrize(
    ("others", "task", "message"),
    [
        (TAGGED, Task.CAUSAL_LM, "of one kind, and .*rows.jsonl has prompt-completion rows"),
        (
            LABELED,
            Task.CAUSAL_LM,
            "others.jsonl has texts with labels, but .*rows.jsonl has prompt",
        ),
        ([{"messages": 1}], Task.CAUSAL_LM, "others.jsonl, row 1: messages is 1"),
    ],
)
def test_sources_of_two_kinds_are_one_message(
    tmp_path: Path, others: list[Row], task: Task, message: str
) -> None:
    """Rows to classify beside rows to answer are refused before all of them are read."""
    sources = [
        source(tmp_path, "rows", rows_of("a", 3)),
        source(tmp_path, "others", others),
    ]
    settings = DataSettings.model_validate({"train": sources})
    for reading in (lambda: read_examples(settings, 0, task), lambda: check_first_rows(settings)):
        with pytest.raises(UserError, match=message):
            reading()


def test_classes_are_those_of_all_sources(tmp_path: Path) -> None:
    """A class may stand in one source only."""
    sources = [
        source(tmp_path, "a", LABELED),
        source(tmp_path, "b", [{"text": "c", "label": "z"}]),
    ]
    settings = DataSettings.model_validate({"train": sources, "eval_fraction": 0})
    sets = read_examples(settings, 0, Task.SEQUENCE_CLASSIFICATION)
    assert sets.labels == ("x", "y", "z")
    assert not sets.untrained_labels
