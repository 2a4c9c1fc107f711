"""Metrics of single answers give what their definitions say."""

from pathlib import Path

import pytest

from tasks.config import AnswerKind
from tasks.engine.scoring.row_metrics import resolve_kind, row_metrics
from tasks.errors import UserError


def score(metric: str, answer: str, expected: str, kind: AnswerKind = AnswerKind.JSON) -> float:
    """Score one answer."""
    return row_metrics(kind, [expected], {})[metric](answer, expected)


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ('{"a": 1, "b": "x"}', 1),
        ('{"b": "x", "a": 1}', 1),
        ('{"a": 1, "b": "y"}', 1 / 2),
        ('{"a": 1, "b": "x", "c": 0}', 2 / 3),
        ('{"a": true, "b": "x"}', 1 / 2),
        ('{"a": 1, "b": "x"', 0),
        ("[1]", 0),
    ],
)
def test_field_accuracy_is_the_share_of_equal_fields(answer: str, share: float) -> None:
    """Fields count that both have alike; a wrong, a missing and an invented one do not."""
    assert score("field_accuracy", answer, '{"a": 1, "b": "x"}') == pytest.approx(share)


def test_json_is_valid_or_not() -> None:
    """Validity asks whether the answer reads as JSON of the expected kind, whatever is in it."""
    assert score("json_valid", "{}", '{"a": 1}') == score("json_valid", "[]", "[1]") == 1
    assert score("json_valid", "{", '{"a": 1}') == score("json_valid", "[" * 9999, "{}") == 0
    assert score("json_valid", "7", '{"a": 1}') == score("json_valid", "{}", "[1]") == 0
    assert score("json_valid", "7", "8") == score("json_valid", "null", "8") == 1


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_what_python_alone_reads_is_no_json(constant: str) -> None:
    """Other readers of JSON refuse these, so they are not valid."""
    assert score("json_valid", f'{{"a": {constant}}}', '{"a": 1}') == 0


def test_a_label_may_differ_in_case_and_space() -> None:
    """`accuracy` takes a label as right that `exact_match` does not."""
    assert score("accuracy", " Card  arrival", "card arrival", AnswerKind.LABELS) == 1
    assert score("exact_match", " Card  arrival", "card arrival", AnswerKind.LABELS) == 0


def test_tags_are_right_word_by_word() -> None:
    """`accuracy` is the share of words, and entities count where the tags name some."""
    assert score("accuracy", "O B-A O", "O B-A B-B", AnswerKind.TAGS) == pytest.approx(2 / 3)
    assert score("accuracy", "O", "O B-A B-B", AnswerKind.TAGS) == pytest.approx(1 / 3)
    assert score("entity_f1", "O B-A O", "O B-A B-B", AnswerKind.TAGS) == pytest.approx(2 / 3)
    assert "entity_f1" not in row_metrics(AnswerKind.TAGS, ["NOUN VERB"], {})


@pytest.mark.parametrize(
    ("expected", "kind"),
    [
        (['{"a": 1}', "[2]"], AnswerKind.JSON),
        (["yes", "no", "yes", "no"], AnswerKind.LABELS),
        (["yes", "no", "maybe"], AnswerKind.TEXT),
        (["1", "2"], AnswerKind.TEXT),
        (["long " * 40] * 4, AnswerKind.TEXT),
    ],
)
def test_the_kind_of_answers_is_told_by_looking(expected: list[str], kind: AnswerKind) -> None:
    """`auto` takes objects for JSON, short answers that recur for labels, all else for text."""
    assert resolve_kind(AnswerKind.AUTO, expected) is kind


def test_a_metric_of_the_users_counts() -> None:
    """A function by its import path becomes a metric of its name."""
    metrics = row_metrics(AnswerKind.TEXT, [], {"same": "operator:eq"})
    assert (metrics["same"]("a", "a"), metrics["same"]("a", "b")) == (1, 0)


@pytest.mark.parametrize(
    ("name", "place", "message"),
    [
        ("mine", "no.such:thing", "no.such"),
        ("mine", "operator", "package.module:function"),
        ("mine", ".relative:f", "package.module:function"),
        ("mine", "operator:nothing", "nothing"),
        ("mine", "sys:path", "is not a function"),
        ("rouge_l", "operator:eq", "built-in metric of that name"),
        ("entity_f1", "operator:eq", "built-in metric of that name"),
    ],
)
def test_a_metric_that_is_not_there_is_refused(name: str, place: str, message: str) -> None:
    """The message names the setting and what is wrong with it."""
    with pytest.raises(UserError, match=message):
        row_metrics(AnswerKind.TEXT, [], {name: place})


@pytest.mark.parametrize("source", ["def f(:", "{}['key']", "raise SystemExit(3)", "1 / 0"])
def test_a_metric_s_module_that_fails_is_a_mistake(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong in the user's file, the setting is named, and nothing is tried again."""
    (tmp_path / "own_metric.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"metrics\.mine is 'own_metric:f', which .* \(\w+: "):
        row_metrics(AnswerKind.TEXT, [], {"mine": "own_metric:f"})


def test_a_metric_that_gives_no_number_is_a_mistake() -> None:
    """A metric that fails or is not finite stops with its name, and does not decide."""
    metrics = row_metrics(AnswerKind.TEXT, [], {"mine": "json:loads", "odd": "builtins:ord"})
    with pytest.raises(UserError, match=r"evaluation\.metrics\.mine raised"):
        metrics["mine"]("x", "y")
