"""Batch inference: the same rows with answers, in order, whatever happens on the way."""

import csv
import datetime as dt
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from batch_predictions import PROMPTS, Predicting, base_settings, jsonl, read, routed
from pyarrow import parquet
from tiny_models import tiny_adapter

from tasks.config import AdapterSettings, BaseModelSettings
from tasks.engine.adapters.adapter_set import AdapterSet
from tasks.engine.adapters.adapter_state import WEIGHTS_FILE
from tasks.engine.adapters.folders import find_adapter
from tasks.engine.data.rendering.prompts import Prompt
from tasks.engine.objectives.generation import answer
from tasks.errors import UserError
from tasks.inference.adapters_on_base import load_adapters
from tasks.records import FileRecord


@pytest.fixture(scope="module")
def adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Save two adapters that answer differently."""
    root = tmp_path_factory.mktemp("adapters")
    return {name: tiny_adapter(tiny_base, root / name, seed=n) for n, name in enumerate("ab")}


@pytest.fixture(scope="module")
def expected(tiny_base: Path, adapters: dict[str, Path]) -> dict[str, list[str]]:
    """Answer each prompt alone, with each adapter, as a chat."""
    loaded = AdapterSet.on(base_settings(tiny_base))
    found = {}
    for name, folder in adapters.items():
        loaded.load(folder, name)
        found[name] = [
            text for prompt in PROMPTS for text in _answers(loaded, [chat(loaded, prompt)])
        ]
    assert all(x != y for x, y in zip(*found.values(), strict=True))
    return found


def _answers(loaded: AdapterSet, prompts: Sequence[str]) -> list[str]:
    return answer(
        loaded.model,
        loaded.tokenizer,
        [Prompt(text, adds_special_tokens=False) for text in prompts],
        max_new_tokens=6,
        batch_size=1,
    )


def chat(loaded: AdapterSet, prompt: str) -> str:
    """Write a prompt as the chat template does."""
    turn = [{"role": "user", "content": prompt}]
    return str(
        loaded.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    )


@pytest.fixture
def predict(tiny_base: Path, adapters: dict[str, Path], tmp_path: Path) -> Predicting:
    """Return the task."""
    return Predicting(tiny_base, adapters, tmp_path)


SEPARATORS = {"rows.csv": ",", "semicolons.csv": ";", "rows.tsv": "\t"}


def _write_csv(file: Path, rows: list[dict[str, object]]) -> None:
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]), delimiter=SEPARATORS[file.name])
        writer.writeheader()
        writer.writerows(rows)


FILES: dict[str, Callable[[Path, list[dict[str, object]]], object]] = {
    "rows.jsonl": lambda file, rows: file.write_text("\n".join(map(json.dumps, rows))),
    **dict.fromkeys(SEPARATORS, _write_csv),
    "rows.parquet": lambda file, rows: parquet.write_table(pa.Table.from_pylist(rows), file),
}


@pytest.mark.parametrize("name", FILES)
def test_every_row_gets_its_adapter_s_answer(
    predict: Predicting, expected: dict[str, list[str]], tmp_path: Path, name: str
) -> None:
    """Of each kind of file the rows come back in order, each with its own adapter's answer."""
    FILES[name](tmp_path / name, routed())
    record = predict(tmp_path / name)

    output = tmp_path / f"answers{Path(name).suffix}"
    rows: list[dict[str, Any]]
    match output.suffix:
        case ".csv" | ".tsv":
            rows = list(csv.DictReader(output.open(newline=""), delimiter=SEPARATORS[name]))
        case ".parquet":
            rows = parquet.read_table(output).to_pylist()
        case _:
            rows = read(output)
    assert [int(row["n"]) for row in rows] == list(range(len(PROMPTS)))
    answers = [row["answer"] for row in rows]
    assert answers == [expected["ab"[n % 2]][n] for n in range(len(PROMPTS))]
    assert not any(row["error"] for row in rows)
    digests = {n: FileRecord.of(f / WEIGHTS_FILE).sha256 for n, f in predict.adapters.items()}
    expected_versions = [f"{predict.adapters[n]} (sha256 {digests[n][:12]})" for n in "ab"]
    versions = [row["adapter_version"] for row in rows]
    assert versions == [expected_versions[n % 2] for n in range(len(PROMPTS))]
    assert (record.num_answered, record.num_rows_per_adapter) == (9, {"a": 5, "b": 4})
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_other_columns_keep_their_types(predict: Predicting, tmp_path: Path) -> None:
    """A Parquet file's dates, lists and decimals come back as they were."""
    table = pa.table(
        {
            "prompt": PROMPTS[:2],
            "adapter": ["a", "b"],
            "day": [dt.date(2026, 1, 2)] * 2,
            "tags": [["x"], []],
        }
    )
    parquet.write_table(table, tmp_path / "rows.parquet")
    predict(tmp_path / "rows.parquet")
    after = parquet.read_table(tmp_path / "answers.parquet")
    assert after.select(table.column_names).equals(table)


BAD: dict[str, tuple[object, str]] = {
    "no JSON": ("{nonsense", "line 2: invalid JSON"),
    "no UTF-8": ('{"prompt": "\udcff"}', "not UTF-8 text (line 2"),
    "too large a number": ('{"n": ' + "1" * 5000 + "}", "line 2: the JSON can't be read"),
    "half a character": ('{"adapter": "a", "prompt": "\\ud83d"}', "half of a surrogate pair"),
    "a key twice": ('{"prompt": "a", "prompt": "b"}', "line 2: the key 'prompt' is given twice"),
    "tools": (
        {"adapter": "a", "prompt": "x", "tools": [{}]},
        "row 2: tool 1 of tools is {}, without",
    ),
    "no question": ({"adapter": "a", "note": "x"}, "row 2: a row needs one of messages, "),
    "empty": ({"adapter": "a", "prompt": " "}, "row 2: prompt is empty"),
    "no adapter": ({"prompt": "x"}, "row 2: adapter is missing; possible: a, b"),
    "unknown adapter": ({"adapter": "c", "prompt": "x"}, "adapter is 'c'; possible: a, b"),
    "too long": ({"adapter": "a", "prompt": "fox " * 2000}, "the model takes at most 1018"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_a_bad_row_is_told_and_the_others_are_answered(
    predict: Predicting, expected: dict[str, list[str]], tmp_path: Path, case: tuple[object, str]
) -> None:
    """What is wrong with a row stands in its place, and it is counted."""
    rows: list[object] = list(routed())
    rows[1], error = case
    record = predict(jsonl(tmp_path, rows))

    answered = read(tmp_path / "answers.jsonl")
    assert error in answered[1]["error"]
    assert answered[1]["answer"] is None
    assert [row["answer"] for row in answered[2:4]] == [expected["a"][2], expected["b"][3]]
    assert (record.num_answered, record.num_bad_rows) == (8, 1)
    assert error in record.first_errors[0]


def test_a_csv_cell_that_is_no_text_spoils_its_row_alone(
    predict: Predicting, expected: dict[str, list[str]], tmp_path: Path
) -> None:
    """Rows before and behind it are answered."""
    lines = [f"{prompt},a".encode() for prompt in PROMPTS[:3]]
    lines[1] = b"\xff" + lines[1]
    (tmp_path / "rows.csv").write_bytes(b"\n".join([b"prompt,adapter", *lines]))
    assert predict(tmp_path / "rows.csv").num_bad_rows == 1
    rows = list(csv.DictReader((tmp_path / "answers.csv").open(newline="")))
    assert [row["answer"] for row in rows] == [expected["a"][0], "", expected["a"][2]]
    assert "not UTF-8 text (line 3" in rows[1]["error"]


def test_what_no_file_can_hold_as_text_is_kept_as_an_escape(
    predict: Predicting, tmp_path: Path
) -> None:
    """Half of a surrogate pair in a column that nobody asks about comes back as it was."""
    rows = [row | {"note": "\ud83d"} for row in routed()]
    assert predict(jsonl(tmp_path, rows)).num_bad_rows == 0
    assert [row["note"] for row in read(tmp_path / "answers.jsonl")] == ["\ud83d"] * len(rows)


def test_a_row_s_own_answer_is_not_given_away(
    predict: Predicting, expected: dict[str, list[str]], tmp_path: Path
) -> None:
    """Held-out rows with answers, in any format, are asked what they ask, and nothing more."""
    prompt = PROMPTS[0]
    talk = [{"role": "user", "content": prompt}, {"role": "assistant", "content": "known"}]
    rows: list[dict[str, object]] = [
        {"prompt": prompt, "completion": "known"},
        {"instruction": prompt, "output": "known"},
        {"messages": talk},
        {"messages": talk[:1]},
        {"messages": json.dumps(talk)},
    ]
    predict(jsonl(tmp_path, [row | {"adapter": "a"} for row in rows]))
    answers = {row["answer"] for row in read(tmp_path / "answers.jsonl")}
    assert answers == {expected["a"][0]}


def test_one_process_writes(predict: Predicting, tmp_path: Path) -> None:
    """A second process at the same output is turned away."""
    from filelock import FileLock

    folder = tmp_path / ".answers.jsonl.partial"
    folder.mkdir()
    with FileLock(folder / "lock"), pytest.raises(UserError, match="another process"):
        predict(jsonl(tmp_path, routed()))


def test_nothing_is_replaced_unasked(predict: Predicting, tmp_path: Path) -> None:
    """An output that is there, and a column of the answers' name, are refused before any work."""
    source = jsonl(tmp_path, routed())
    (tmp_path / "answers.jsonl").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        predict(source)
    assert (tmp_path / "answers.jsonl").read_text() == "mine"
    assert predict(source, overwrite=True).num_answered == 9
    with pytest.raises(UserError, match="already have a column 'n'"):
        predict(source, answer_column="n", overwrite=True)


def test_without_an_output_the_answers_are_in_the_home(
    predict: Predicting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A form that names no output works on every worker, also in a home where nothing is yet."""
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path / "new"))
    record = predict(jsonl(tmp_path, routed()), output=None)
    assert record.output.path == tmp_path / "new/outputs/answers-rows.jsonl"
    assert record.num_answered == 9


def test_a_file_without_questions_is_a_mistake(predict: Predicting, tmp_path: Path) -> None:
    """If no row can be answered, that is one message before any model is loaded."""
    with pytest.raises(UserError, match=r"none of its 2 rows.*row 1: adapter is missing"):
        predict(jsonl(tmp_path, [{"question": "x"}] * 2))


def test_one_adapter_needs_no_column(
    tiny_base: Path, adapters: dict[str, Path], expected: dict[str, list[str]], tmp_path: Path
) -> None:
    """With a single adapter, which tells its base and type, rows need only a prompt."""
    folder = Path(shutil.copytree(adapters["a"], tmp_path / "a"))
    base = {"reference": str(tiny_base), "dtype": "float32"}
    (folder / "manifest.json").write_text(json.dumps({"base_model": base}))
    predict = Predicting(tiny_base, {"a": folder}, tmp_path)
    predict(jsonl(tmp_path, [{"prompt": prompt} for prompt in PROMPTS]), base_model=None)
    assert [row["answer"] for row in read(tmp_path / "answers.jsonl")] == expected["a"]


def test_another_place_of_the_base_changes_nothing_else(
    tiny_base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    """A base that is named has the type and packing of the adapter's training, unless they are."""
    folder = Path(shutil.copytree(adapters["a"], tmp_path / "a"))
    trained_on = {"reference": "org/base", "dtype": "float16", "quantization": "8bit"}
    (folder / "manifest.json").write_text(json.dumps({"base_model": trained_on}))
    found = find_adapter(folder)
    wanted = [AdapterSettings(source=str(folder), any_base=True)]
    for changes in ({}, {"dtype": "float32", "quantization": "none"}):
        given = BaseModelSettings.model_validate({"source": str(tiny_base), **changes})
        used = load_adapters(given, wanted, [found]).base.settings
        told = {**trained_on, **changes}
        assert (used.dtype, used.quantization) == (told["dtype"], told["quantization"])


def test_a_task_that_is_unknown_is_a_mistake(tiny_base: Path, tmp_path: Path) -> None:
    """A manifest of another version may name one; a base that is given does not hide it."""
    folder = tiny_adapter(tiny_base, tmp_path / "adapter")
    (folder / "manifest.json").write_text(json.dumps({"base_model": {"task": "image"}}))
    with pytest.raises(UserError, match=r"the base of .*: task is 'image'; it must be"):
        Predicting(tiny_base, {"a": folder}, tmp_path)(jsonl(tmp_path, [{"prompt": "x"}]))
