"""Tokens are kept by what they are made of, and are what they would be if made again."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tiny_models import tiny_tokenizer

from tasks.config import DataSettings, Template
from tasks.engine.data import token_cache
from tasks.engine.data.examples import Split
from tasks.engine.data.rendering import Renderer
from tasks.engine.data.row_formats import Example, Message
from tasks.engine.data.tokenization import TokenizedSplit, tokenize_split
from tasks.errors import UserError
from tasks.runtime import home

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path))


def split_of(*answers: str) -> Split:
    """Give a split of short rows."""
    examples = tuple(
        Example(row, (Message("user", "The fox is"), Message("assistant", answer)))
        for row, answer in enumerate(answers, 1)
    )
    return Split(source="rows.jsonl", sha256="".join(answers), examples=examples)


SPLIT = split_of(" quick", " brown and lazy", " a dog")


def settings(**changes: object) -> DataSettings:
    """Give settings of the data."""
    return DataSettings.model_validate({"train": "rows.jsonl", **changes})


def tokens(
    split: Split = SPLIT,
    template: Template = Template.CHAT,
    **changes: Any,  # noqa: ANN401 - settings
) -> tuple[TokenizedSplit, bool]:
    """Give the tokens, and whether they were made now."""
    renderer, data, made = Renderer(tiny_tokenizer(), template), settings(**changes), []

    def make() -> TokenizedSplit:
        made.append(1)
        return tokenize_split(split, renderer, data)

    return token_cache.tokenized(split, renderer, data, make), bool(made)


@pytest.mark.parametrize("changes", [{}, {"max_length": 30, "on_lost_answer": "drop"}])
def test_kept_tokens_are_those_that_were_made(changes: dict[str, Any]) -> None:
    """Rows, labels, examples and counts come back equal."""
    made, is_new = tokens(**changes)
    kept, is_new_again = tokens(**changes)
    assert (is_new, is_new_again) == (True, False)
    assert kept == made


def test_equal_rows_of_another_file_are_the_same_rows() -> None:
    """Where rows come from is told, and does not matter."""
    tokens()
    moved, is_new = tokens(replace(SPLIT, source="elsewhere.jsonl"))
    assert (moved.record.source, is_new) == ("elsewhere.jsonl", False)


OTHERS: dict[str, "Callable[[], tuple[TokenizedSplit, bool]]"] = {
    "rows": lambda: tokens(split_of(" slow")),
    "template": lambda: tokens(template=Template.PLAIN),
    "length": lambda: tokens(max_length=31),
    "loss": lambda: tokens(loss_on="all"),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_something_else_is_made_anew(other: "Callable[[], tuple[TokenizedSplit, bool]]") -> None:
    """Other rows, another template or another setting have tokens of their own."""
    tokens()
    assert other()[1]


@pytest.mark.parametrize("size", [0, 100])
def test_a_spoiled_file_counts_as_absent(size: int) -> None:
    """What a full disk or a kill left is made again."""
    tokens()
    (file,) = (home.cache() / "tokens").iterdir()
    file.write_bytes(file.read_bytes()[:size])
    assert tokens()[1]
    assert not tokens()[1]


def test_a_mistake_is_not_kept() -> None:
    """A row that loses its answer is an error each time."""
    for _ in range(2):
        with pytest.raises(UserError, match="nothing of the answer is left"):
            tokens(max_length=8)


def test_old_files_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more files stay than are likely to be used again."""
    monkeypatch.setattr(token_cache, "_KEPT_FILES", 2)
    for answer in (" a", " b", " c"):
        tokens(split_of(answer))
    assert len(list((home.cache() / "tokens").iterdir())) == 2
    assert not tokens(split_of(" c"))[1]
