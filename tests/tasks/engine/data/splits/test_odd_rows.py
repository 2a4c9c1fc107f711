"""What is odd about rows is counted, with the first of them, and stops nothing."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from tasks.config import BaseModelSettings, DataSettings, Task
from tasks.engine.base.sources import find_base
from tasks.engine.data.rows.row_sources import Row
from tasks.engine.data.splits.examples import read_examples
from tasks.engine.data.splits.odd_rows import MOSTLY_PROMPT, TRUNCATED, Oddity, odd_text
from tasks.engine.preparation import prepare_data
from tasks.records import DataRecord, OddRows, RowPlace


def plain(count: int, name: str = "q") -> list[Row]:
    """Make that many different rows."""
    return [{"prompt": f"{name}{number}", "completion": f"a{number}"} for number in range(count)]


def written(folder: Path, name: str, rows: Sequence[Row]) -> str:
    """Write rows as JSONL."""
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def odd_of(settings: dict[str, object], task: Task = Task.CAUSAL_LM) -> dict[str, OddRows]:
    """Return what is odd about rows before they are tokenized, by kind."""
    data = DataSettings.model_validate({"eval_fraction": 0, **settings})
    return {one.kind: one for one in read_examples(data, 0, task).odd}


def prepared(base: Path, folder: Path, rows: Sequence[Row], **more: object) -> DataRecord:
    """Tokenize rows; return the record."""
    given = {"train": written(folder, "rows", rows), "eval_fraction": 0, **more}
    settings = DataSettings.model_validate(given)
    source = find_base(BaseModelSettings(source=str(base)))
    sets = read_examples(settings, 0)
    return prepare_data(sets, settings, 0, source, folder / "tokens").record


def rows_in(odd: OddRows) -> list[tuple[str, int]]:
    """Return the first odd rows."""
    return [(place.source, place.row) for place in odd.first]


def test_nothing_is_odd_about_plain_rows(tiny_base: Path, tmp_path: Path) -> None:
    """Different short rows raise no warning."""
    assert not prepared(tiny_base, tmp_path, plain(50), eval_fraction=0.1).odd


def test_duplicates_are_counted_across_sources(tmp_path: Path) -> None:
    """A row that stands twice is odd the second time, also in another source."""
    rows = plain(4)
    train = [written(tmp_path, "a", [*rows, rows[0]]), written(tmp_path, "b", rows[2:])]
    odd = odd_of({"train": train})
    assert odd.keys() == {Oddity.DUPLICATE}
    assert odd[Oddity.DUPLICATE].num_rows == 3
    assert rows_in(odd[Oddity.DUPLICATE]) == [("a", 5), ("b", 1), ("b", 2)]


def test_contradictions_are_all_rows_of_the_prompt(tmp_path: Path) -> None:
    """One prompt with two answers is odd in each of its rows; with one answer it's a duplicate."""
    rows: list[Row] = [*plain(3), {"prompt": "q1", "completion": "other"}, plain(1)[0]]
    odd = odd_of({"train": written(tmp_path, "a", rows)})
    assert rows_in(odd[Oddity.CONTRADICTION]) == [("a", 2), ("a", 4)]
    assert rows_in(odd[Oddity.DUPLICATE]) == [("a", 5)]


def test_a_text_with_two_labels_is_a_contradiction(tmp_path: Path) -> None:
    """Of classified texts the label is the answer."""
    rows: list[Row] = [{"text": t, "label": x} for t, x in ("ax", "bx", "ay", "bx")]
    train = written(tmp_path, "a", rows)
    odd = odd_of({"train": train}, Task.SEQUENCE_CLASSIFICATION)
    assert rows_in(odd[Oddity.CONTRADICTION]) == [("a", 1), ("a", 3)]
    assert rows_in(odd[Oddity.DUPLICATE]) == [("a", 4)]


def test_held_out_rows_are_looked_for_in_each_source(tmp_path: Path) -> None:
    """A held-out row that is trained on is odd, whichever source it is in."""
    train = [written(tmp_path, "a", plain(3)), written(tmp_path, "b", plain(3, "other"))]
    held_out = written(tmp_path, "apart", [*plain(1, "new"), *plain(2, "other")])
    odd = odd_of({"train": train, "eval": held_out})
    assert rows_in(odd[Oddity.TRAINED]) == [("apart", 2), ("apart", 3)]


def test_only_the_first_rows_are_kept(tmp_path: Path) -> None:
    """Of many odd rows the number is kept and a few row numbers, which the text shows."""
    odd = odd_of({"train": written(tmp_path, "a", plain(1) * 2001)})[Oddity.DUPLICATE]
    assert (odd.num_rows, len(odd.first)) == (2000, 5)
    assert odd_text(odd).startswith("2,000 training rows repeat")
    assert odd_text(odd).endswith("(rows of a 2, 3, 4, 5, 6, …)")


def test_a_row_of_almost_only_prompt_is_odd(tiny_base: Path, tmp_path: Path) -> None:
    """The share is that of tokens, with the limit itself still usual."""
    rows: list[Row] = [*plain(2), {"prompt": "q " * 100, "completion": "a"}]
    record = prepared(tiny_base, tmp_path, rows, template="plain")
    (odd,) = record.odd
    assert (odd.kind, rows_in(odd)) == (Oddity.MOSTLY_PROMPT, [("rows", 3)])
    assert f"{MOSTLY_PROMPT:.0%}" in odd_text(odd)
    assert not prepared(tiny_base, tmp_path, rows, loss_on="all").odd


def test_truncation_is_odd_if_it_is_frequent(tiny_base: Path, tmp_path: Path) -> None:
    """At the limit, truncated rows are outliers; above it, `max_length` is too small."""
    longest: Row = {"prompt": "q", "completion": "a " * 50}
    allowed = round(TRUNCATED * 100)
    for count, is_odd in ((allowed, False), (allowed + 1, True)):
        rows = [*plain(100 - count), *({**longest, "prompt": f"x{n}"} for n in range(count))]
        record = prepared(tiny_base, tmp_path, rows, template="plain", max_length=40)
        assert record.train.num_shortened_answers == count
        found = [one for one in record.odd if one.kind == Oddity.TRUNCATED]
        assert bool(found) == is_odd
    assert found[0].first[0] == RowPlace(source="rows", row=100 - allowed)


def test_a_template_without_an_end_is_odd(tiny_base: Path, tmp_path: Path) -> None:
    """An answer that the template does not end is reported, although an end token is appended."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "")
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    tokenizer.save_pretrained(base)
    (odd,) = prepared(base, tmp_path, plain(3)).odd
    assert (odd.kind, odd.num_rows) == (Oddity.COMPLETED, 3)
