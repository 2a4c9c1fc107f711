"""How good one answer is beside the expected one: numbers of which more is better, mostly 0 to 1.

Token F1 and ROUGE-L (https://aclanthology.org/W04-1013) are those of the package rouge-score, with
words and marks of all languages as tokens: its own tokens are a to z and digits only. The F1 of
single tokens (ROUGE-1's) is SQuAD's token F1, without its removal of English articles.
"""

import hashlib
import importlib
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.config import AnswerKind
from tasks.engine.data.json_values import parse_answer, same_json
from tasks.engine.objectives.class_counts import entity_f1
from tasks.engine.objectives.entities import names_entities
from tasks.engine.objectives.generation import matches
from tasks.errors import UserError

RowMetric = Callable[[str, str], float]
"""Of an answer and the expected one."""

_MAX_LABEL_CHARACTERS = 80
_ROWS_PER_LABEL = 2
_TOKEN = re.compile(r"\w+|[^\w\s]")
_MISSING = object()


def resolve_kind(wanted: AnswerKind, expected: Sequence[str]) -> AnswerKind:
    """Resolve `auto` by the expected answers."""
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
    """Give the metrics of a kind of answers by their names, with the user's own.

    Args:
        kind: what the answers are.
        expected: all expected ones, which tell whether tags name entities.
        own: the user's, by their import paths.

    Raises:
        UserError: one of the user's is not there, or has the name of another.
    """
    metrics: dict[str, RowMetric] = {"exact_match": _exact_match}
    if kind.are_classes:
        metrics["accuracy"] = _accuracy(kind)
    if kind is not AnswerKind.TAGS:
        metrics |= _overlaps()
    elif names_entities(list({tag for text in expected for tag in text.split()})):
        metrics["entity_f1"] = _entity_f1
    if kind is AnswerKind.JSON:
        metrics |= {"json_valid": _json_valid, "field_accuracy": _field_accuracy}
    for name, place in own.items():
        if name in {*metrics, "loss", "perplexity", "macro_f1", "entity_f1"}:
            raise UserError(f"evaluation.metrics.{name}: that name is taken; choose another")
        metrics[name] = _checked(name, _imported(name, place))
    return metrics


def label(text: str) -> str:
    """Give the label that a text is: upper case and white space make no difference."""
    return " ".join(text.split()).casefold()


def _exact_match(answer: str, expected: str) -> float:
    return float(matches(answer, expected))


def classes_of(answer: str, expected: str, kind: AnswerKind) -> tuple[list[str], list[str]]:
    """Give the classes of an answer, and the expected ones beside them: one each of labels.

    Of tags there is one a word. A word without one has the tag "", which is never right.
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


def _overlaps() -> dict[str, RowMetric]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rougeL"], tokenizer=_Tokens())

    def overlap(kind: str) -> RowMetric:
        return lambda answer, expected: float(scorer.score(expected, answer)[kind].fmeasure)

    return {"token_f1": overlap("rouge1"), "rouge_l": overlap("rougeL")}


class _Tokens:
    """Words and single marks of any language, in lower case."""

    def tokenize(self, text: str) -> list[str]:
        return _TOKEN.findall(text.casefold())


def _json_valid(answer: str, expected: str) -> float:
    """Tell whether an answer reads as JSON, and as an object or a list where that is expected."""
    given, wanted = _parsed(answer), _parsed(expected)
    kind = type(wanted) if isinstance(wanted, dict | list) else object
    return float(given is not _MISSING and isinstance(given, kind))


def _field_accuracy(answer: str, expected: str) -> float:
    """Give the share of the fields of either object that both have with equal values."""
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
            f"evaluation.metrics.{name} is {place!r}: {type(error).__name__}: {error}; write "
            "package.module:function, and have the package installed or on PYTHONPATH"
        ) from error
    if not callable(found):
        raise UserError(f"evaluation.metrics.{name}: {place} is no function")
    return found  # type: ignore[no-any-return]


def source_sha256(place: str) -> str:
    """Hash the file that one of the user's metrics, which was imported before, is defined in.

    Other files that it imports are not looked at.
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
                f"evaluation.metrics.{name} failed on the answer {answer[:80]!r}: {error!r}"
            ) from error
        if not math.isfinite(value):
            raise UserError(
                f"evaluation.metrics.{name} gave {value} for the answer {answer[:80]!r}; it must "
                "give a finite number"
            )
        return value

    return metric
