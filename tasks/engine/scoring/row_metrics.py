"""Metrics of one answer against the expected one: numbers, mostly 0 to 1, where more is better."""

import hashlib
import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.config import AnswerKind
from tasks.engine.data.rows import parse_answer, same_json
from tasks.engine.excerpts import excerpt
from tasks.engine.objectives import entity_f1, matches, names_entities
from tasks.engine.scoring.token_overlap import rouge_l, token_f1
from tasks.errors import UserError

RowMetric = Callable[[str, str], float]
"""A function of an answer and the expected one; greater is better."""

_MAX_LABEL_CHARACTERS = 80
_ROWS_PER_LABEL = 2
"""Answers that repeat less than this on average are not taken for labels."""
_MISSING = object()


def resolve_kind(wanted: AnswerKind, expected: Sequence[str]) -> AnswerKind:
    """Return the kind of the answers; `auto` is resolved by what the expected ones look like.

    They are JSON if all of them are JSON objects or arrays, labels if they are short, single lines
    and repeat often, and text otherwise.
    """
    if wanted is not AnswerKind.AUTO:
        return wanted
    if all(isinstance(_parsed(text), (dict, list)) for text in expected):
        return AnswerKind.JSON
    are_short = all(len(t) <= _MAX_LABEL_CHARACTERS and len(t.splitlines()) == 1 for t in expected)
    if are_short and len(expected) >= _ROWS_PER_LABEL * len({label(text) for text in expected}):
        return AnswerKind.LABELS
    return AnswerKind.TEXT


def row_metrics(
    kind: AnswerKind, expected: Sequence[str], own: Mapping[str, str]
) -> dict[str, RowMetric]:
    """Return the metrics for a kind of answers and the user's own, by name.

    Args:
        kind: what the answers are.
        expected: all expected answers, which show whether tags are in IOB format.
        own: import paths (`package.module:function`) of the user's metrics, by name.

    Raises:
        UserError: one of the user's metrics can't be imported, or has the name of another metric.
    """
    metrics: dict[str, RowMetric] = {"exact_match": _exact_match}
    if kind.are_classes:
        metrics["accuracy"] = _accuracy(kind)
    if kind is not AnswerKind.TAGS:
        metrics |= {"token_f1": token_f1, "rouge_l": rouge_l}
    elif names_entities(list({tag for text in expected for tag in text.split()})):
        metrics["entity_f1"] = _entity_f1
    if kind is AnswerKind.JSON:
        metrics |= {"json_valid": _json_valid, "field_accuracy": _field_accuracy}
    for name, place in own.items():
        if name in {*metrics, "loss", "perplexity", "macro_f1", "entity_f1"}:
            raise UserError(
                f"evaluation.metrics.{name}: there is a built-in metric of that name; choose "
                "another name"
            )
        metrics[name] = _checked(name, _imported(name, place))
    return metrics


def label(text: str) -> str:
    """Return the label that a text stands for, ignoring case and whitespace."""
    return " ".join(text.split()).casefold()


def _exact_match(answer: str, expected: str) -> float:
    return float(matches(answer, expected))


def classes_of(answer: str, expected: str, kind: AnswerKind) -> tuple[list[str], list[str]]:
    """Return the classes of an answer, and the expected ones, in lists of the same length.

    A label is one class, tags are one per word. A word that the answer has no tag for has the tag
    "", which is never correct.
    """
    if kind is AnswerKind.LABELS:
        return [label(answer)], [label(expected)]
    wanted = expected.split()
    given = answer.split()[: len(wanted)]
    return given + [""] * (len(wanted) - len(given)), wanted


def _accuracy(kind: AnswerKind) -> RowMetric:
    def share_right(answer: str, expected: str) -> float:
        given, wanted = classes_of(answer, expected, kind)
        return sum(a == b for a, b in zip(given, wanted, strict=True)) / len(wanted)

    return share_right


def _entity_f1(answer: str, expected: str) -> float:
    given, wanted = classes_of(answer, expected, AnswerKind.TAGS)
    return entity_f1([wanted], [given])


def _json_valid(answer: str, expected: str) -> float:
    """Return 1 if an answer is JSON, and an object or array if one is expected; 0 otherwise."""
    given, wanted = _parsed(answer), _parsed(expected)
    kind = type(wanted) if isinstance(wanted, dict | list) else object
    return float(given is not _MISSING and isinstance(given, kind))


def _field_accuracy(answer: str, expected: str) -> float:
    """Return the share of fields with equal values among the fields of either object."""
    given, wanted = _parsed(answer), _parsed(expected)
    if not isinstance(wanted, dict):
        return _exact_match(answer, expected)
    if not isinstance(given, dict):
        return 0.0
    fields = given.keys() | wanted.keys()
    equal = sum(same_json(given.get(one, _MISSING), wanted.get(one, _MISSING)) for one in fields)
    return equal / len(fields) if fields else 1.0


def _parsed(text: str) -> object:
    try:
        return parse_answer(text)
    except (ValueError, RecursionError):
        return _MISSING


def _imported(name: str, place: str) -> Callable[..., Any]:
    module, _, function = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # a module of the user's may raise anything
        raise UserError(
            f"evaluation.metrics.{name} is {place!r}, which can't be imported "
            f"({type(error).__name__}: {error}); write package.module:function, and install the "
            "package or add it to PYTHONPATH"
        ) from error
    if not callable(found):
        raise UserError(
            f"evaluation.metrics.{name} is {place!r}, which is not a function but a "
            f"{type(found).__name__}; name a function of an answer and the expected answer"
        )
    return found  # type: ignore[no-any-return]


def source_sha256(place: str) -> str:
    """Return the sha256 of the file of one of the user's metrics, which must be imported already.

    Modules that the file imports in turn are not hashed.
    """
    module = sys.modules[place.partition(":")[0]]
    source = Path(module.__file__ or "")
    content = source.read_bytes() if source.is_file() else b""
    return hashlib.sha256(content).hexdigest()


def _checked(name: str, function: Callable[..., Any]) -> RowMetric:
    def metric(answer: str, expected: str) -> float:
        try:
            value = float(function(answer, expected))
        except Exception as error:
            raise UserError(
                f"evaluation.metrics.{name} raised {error!r} on the answer "
                f"{excerpt(repr(answer))}; it must accept any answer"
            ) from error
        if not math.isfinite(value):
            raise UserError(
                f"evaluation.metrics.{name} returned {value} for the answer "
                f"{excerpt(repr(answer))}; it must return a finite number"
            )
        return value

    return metric
