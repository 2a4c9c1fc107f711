"""`init` names all that it doesn't use, and what it writes can be started as it stands."""

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml
from command_line_runs import run_in_process

from flows.cli.early_checks import check_training
from flows.cli.starting_files import write_retraining, write_training
from tasks.config import RetrainAdapterConfig, RowFormat, Task
from tasks.config.reading import read_config
from tasks.engine.data.rows.row_sources import Row, read_rows
from tasks.engine.data.rows.unread_columns import _READ
from tasks.engine.data.splits.examples import read_examples
from tasks.engine.data.splits.leakage import find_leaks, normalized_question
from tasks.engine.scoring.held_out import HeldOut, open_held_out
from tasks.errors import UnwritableError

MEANING = "name[The Eagle], food[French], near[the river {}]"
ROWS = 24


def column(*texts: str) -> list[str]:
    """Return values of a column, in turn, with the number of the row in place of {}."""
    return [texts[number % len(texts)].format(number) for number in range(ROWS)]


CASES: dict[str, tuple[dict[str, list[str]], RowFormat, dict[str, str]]] = {
    "a meaning and its text": (
        {"meaning": column(MEANING), "text": column("Eat French food at {}.")},
        RowFormat.PROMPT_COMPLETION,
        {"prompt": "meaning", "completion": "text"},
    ),
    "an unknown column of sentences": (
        {"text": column("b {}"), "headline": column("Fox {} eats a dog"), "id": column("{}")},
        RowFormat.PROMPT_COMPLETION,
        {"prompt": "headline", "completion": "text"},
    ),
    "a text and its summary": (
        {"text": column("A long story {}."), "summary": column("Story {}.")},
        RowFormat.PROMPT_COMPLETION,
        {"prompt": "text", "completion": "summary"},
    ),
    "a text and its class": (
        {"text": column("My card {} is lost"), "intent": column("card", "pin", "fee")},
        RowFormat.LABELLED,
        {"label": "intent"},
    ),
    "a text and where it is from": (
        {"text": column("Fox {}"), "source": column("New York Times"), "none": column("")},
        RowFormat.TEXT,
        {},
    ),
    "several questions": (
        {"source": column("web"), "Question": column("Why {}?"), "answer": column("{}")},
        RowFormat.PROMPT_COMPLETION,
        {"prompt": "Question", "completion": "answer"},
    ),
    "an instruction with a response": (
        {"instruction": column("Add {}"), "context": column("c"), "response": column("{}")},
        RowFormat.INSTRUCTION,
        {"input": "context", "output": "response"},
    ),
    "two columns of sentences": (
        {"title": column("A fox, {} dogs"), "body": column("It was a fox {}."), "n": column("1")},
        RowFormat.PROMPT_COMPLETION,
        {"prompt": "title", "completion": "body"},
    ),
    "ours": (
        {"prompt": column("a {}"), "completion": column("b"), "text": column("a {} b")},
        RowFormat.PROMPT_COMPLETION,
        {},
    ),
}  # fmt: skip


def rows_of(columns: dict[str, list[str]]) -> list[Row]:
    """Return the rows of a table."""
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def written_csv(file: Path, rows: Sequence[Row]) -> Path:
    """Write rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    file.write_text(text.getvalue())
    return file


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_each_column_is_used_or_named(
    case: tuple[dict[str, list[str]], RowFormat, dict[str, str]], tiny_base: Path, tmp_path: Path
) -> None:
    """The likely reading is written, passes the early checks, and reads what is not named."""
    columns, row_format, expected = case
    data, file = written_csv(tmp_path / "table.csv", rows_of(columns)), tmp_path / "run.yaml"
    config, notes = write_training(file, str(data), str(tiny_base), None)
    assert config == read_config(file)
    assert config.data.columns == expected
    assert f"read as {row_format}" in notes[0]
    is_labelled = row_format is RowFormat.LABELLED
    assert (config.base_model.task is Task.SEQUENCE_CLASSIFICATION) == is_labelled
    check_training(config)
    ours = {name: expected.get(name, name) for name in _READ[row_format]}
    unused = columns.keys() - set(ours.values())
    named = next((one for one in notes if one.startswith("not used: ")), "")
    assert {name for name in columns if re.search(rf"\b{name} (\(not|\()", named)} == unused
    assert all(note[:60] in file.read_text() for note in notes)


def test_other_readings_stand_ready_as_comments(tmp_path: Path) -> None:
    """Each can take the place of the likely one, with the task that it names."""
    columns, _, likely = CASES["a text and its class"]
    data, file = written_csv(tmp_path / "table.csv", rows_of(columns)), tmp_path / "run.yaml"
    write_training(file, str(data), "org/base", None)
    others = re.findall(r"  # columns: (\{.*\})  # or ([\w-]+), with base_model.task ([\w-]+)",
                        file.read_text())  # fmt: skip
    found = [yaml.safe_load(one) for one, *_ in others]
    assert found == [{}, {"prompt": "text", "completion": "intent"}]
    assert likely not in found
    for (shown, row_format, task), _one in zip(others, found, strict=True):
        chosen = [f"data.columns={shown}", f"base_model.task={task}"]
        config = read_config(file, chosen)
        sets = read_examples(config.data, 0, config.base_model.task)
        assert sets.train.row_format == row_format


def test_a_likely_reading_that_a_row_refuses_is_named(tmp_path: Path) -> None:
    """The next one is taken, and the row is told; without another one it is the mistake."""
    columns, *_ = CASES["a meaning and its text"]
    columns = {**columns, "meaning": ["", *columns["meaning"][1:]]}
    data = written_csv(tmp_path / "table.csv", rows_of(columns))
    config, notes = write_training(tmp_path / "run.yaml", str(data), "org/base", None)
    assert config.data.columns == {}
    assert f"not used: meaning ({ROWS - 1} rows)" in notes
    assert any(re.match(r"not possible: .*table\.csv, row 1: ", note) for note in notes)


def questions(count: int, *, kind: str = "sums") -> list[Row]:
    """Return rows, some of which ask the same."""
    rows: list[Row] = [
        {"id": n, "question": f"What is {n} plus {n}?", "answer": f"It is {2 * n}, \u2028ö"}
        for n in range(count)
    ]
    if kind == "classes":
        rows = [{"text": f"Card {n} is lost", "label": "abc"[n % 3]} for n in range(count - 1)]
        rows.append({"text": "A class of its own", "label": "rare"})
    return rows


def jsonl(rows: Sequence[Row]) -> bytes:
    """Return JSON lines as people write them: blank lines, spaces, and no line break at the end."""
    lines = [json.dumps(row, ensure_ascii=number % 2 == 0) for number, row in enumerate(rows)]
    return ("\ufeff" + "  \r\n\n".join(lines)).encode()


def opened(config: RetrainAdapterConfig) -> HeldOut:
    """Open the held-out rows as `retrain` does."""
    return open_held_out(config.evaluation, config.data, config.base_model.task)


def void(_: object) -> None:
    """Return nothing."""


def parquet(file: Path, rows: list[Row]) -> None:
    """Write rows as Parquet."""
    import pyarrow as pa
    from pyarrow.parquet import write_table

    write_table(pa.Table.from_pylist(rows), file)


SOURCES: dict[str, Callable[[Path, list[Row]], None]] = {
    "rows.jsonl": lambda file, rows: void(file.write_bytes(jsonl(rows))),
    "rows.jsonl.gz": lambda file, rows: void(file.write_bytes(gzip.compress(jsonl(rows)))),
    "rows.json": lambda file, rows: void(file.write_text(json.dumps({"rows": rows}))),
    "rows.csv": lambda file, rows: void(written_csv(file, rows)),
    "rows.parquet": parquet,
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("kind", ["sums", "classes"])
def test_what_init_writes_can_be_retrained(
    name: str, kind: str, tiny_base: Path, tmp_path: Path
) -> None:
    """The two files have all rows between them, once; none that decides is trained on."""
    data, file = tmp_path / name, tmp_path / "run.yaml"
    rows = questions(60, kind=kind)
    rows += [{**rows[0]}]  # asked twice
    SOURCES[name](data, rows)
    before = data.read_bytes()
    config, _ = write_retraining(file, str(data), str(tiny_base), None, None)
    assert isinstance(config, RetrainAdapterConfig)
    check_training(config)
    held_out = opened(config)
    trained = read_examples(config.data.model_copy(update={"eval_fraction": 0.0}), 0,
                            config.base_model.task)  # fmt: skip
    leaks = find_leaks(held_out.examples, trained.train.examples)
    assert (leaks.exact, leaks.normalized) == ((), ())
    assert not {label for one in held_out.examples for label in one.labels} - set(trained.labels)
    assert len({*map(normalized_question, held_out.examples)}) == config.decision.min_rows
    assert config.decision.metric in held_out.metric_names
    assert config.registry.name == config.tracking.experiment == "rows"
    files = [str(config.data.train), config.evaluation.rows]
    split = [row for one in files for row in read_rows(one, "train", None)]
    assert sorted(map(str, split)) == sorted(map(str, read_rows(str(data), "train", None)))
    assert data.read_bytes() == before


def test_lines_are_copied_byte_by_byte(tmp_path: Path) -> None:
    """Spaces and escapes of a line are kept; equal data give equal files."""
    data = tmp_path / "rows.jsonl"
    data.write_bytes(jsonl(questions(40)))
    lines = set(data.read_bytes().removeprefix("\ufeff".encode()).split(b"\n"))
    digests = set()
    for name in ("a", "b"):
        config, _ = write_retraining(tmp_path / f"{name}.yaml", str(data), "org/m", name, 0.25)
        assert isinstance(config, RetrainAdapterConfig)
        digests.add(config.evaluation.sha256)
        copied = Path(config.evaluation.rows).read_bytes().removesuffix(b"\n").split(b"\n")
        assert len(copied) == 10
        assert set(copied) <= lines
    assert len(digests) == 1


REFUSED = {
    "empty": (b"", (), "is empty"),
    "malformed": (b'{"prompt": "a", "completion": "b"}\n{', (), "line 2: invalid JSON"),
    "one row": (b'{"prompt": "a", "completion": "b"}', (), "of the 1 rows"),
    "one question": (b'{"prompt": "a", "completion": "b"}\n' * 9, (), "of the 9 rows"),
    "plain text": (b'{"text": "a"}\n{"text": "b"}\n', (), "no answers to score"),
    "no format": (b'{"a": 1}\n', (), "has the columns a"),
    "a small share": (jsonl(questions(9)), ("--held-out", "0.01"), "raise --held-out"),
    "an impossible name": (jsonl(questions(9)), ("--name", "../a"), "--name is '../a'"),
    "no base": (jsonl(questions(9)), ("--base-model", ""), "base_model.source is ''"),
    "a folder that is there": (
        jsonl(questions(9)),
        ("--name", "old"),
        "old-data exists, and may have rows that were added since; choose another --name",
    ),
    "an unwritable folder": (jsonl(questions(9)), ("-o", "/proc/a.yaml"), "can't be written to"),
    "no folder": (jsonl(questions(9)), ("-o", "none/a.yaml"), "there is no folder"),
    "a file that is there": (jsonl(questions(9)), ("-o", "rows.jsonl"), "already exists"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_nothing_is_left_of_a_mistake(
    case: tuple[bytes, tuple[str, ...], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is one message with exit status 2, before or while files are written."""
    content, options, message = case
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_bytes(content)
    (tmp_path / "old-data").mkdir()
    (tmp_path / "old-data" / "kept").touch()
    before = sorted(tmp_path.rglob("*"))
    arguments = ("init", "rows.jsonl", "--retrain", "--base-model=org/m", *options)
    status, out, err = run_in_process(capsys, monkeypatch, *arguments)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before


def test_without_the_configuration_there_are_no_rows(tmp_path: Path) -> None:
    """If the configuration can't be written after the rows, they are removed."""
    data = tmp_path / "rows.jsonl"
    data.write_bytes(jsonl(questions(9)))
    (tmp_path / "run.yaml" / "inside").mkdir(parents=True)
    with pytest.raises(UnwritableError, match=r"run\.yaml can't be written"):
        write_retraining(tmp_path / "run.yaml", str(data), "org/m", None, None)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["rows.jsonl", "run.yaml"]


@pytest.mark.parametrize(
    ("answers", "objective", "row_format"),
    [
        ({"chosen": "So.", "rejected": "No."}, "dpo", "preference"),
        ({"completion": "So.", "label": True}, "kto", "unpaired-preference"),
    ],
)
def test_pairs_and_judged_answers_are_learned_as_preferences(
    tmp_path: Path, answers: dict[str, object], objective: str, row_format: str
) -> None:
    """Rows of a chosen and a rejected answer, or of a label, make a fitting configuration."""
    rows = [{"prompt": f"Why {n}?", **answers} for n in range(ROWS)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config, notes = write_training(tmp_path / "run.yaml", str(data), "org/model", None)
    assert config.training.objective == objective
    assert notes[0].endswith(f"read as {row_format}")
    assert read_config(tmp_path / "run.yaml") == config
