"""Batch inference: the same rows with answers, in order, whatever happens on the way."""

import csv
import datetime as dt
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from tiny_models import tiny_adapter, tiny_tokenizer

from tasks.config import AdapterSettings, BaseModelSettings, PredictBatchConfig
from tasks.engine.adapters.adapter_set import AdapterSet
from tasks.engine.adapters.folders import find_adapter
from tasks.engine.data.prompts import Prompt
from tasks.engine.objectives.generation import answer
from tasks.engine.scoring import prediction
from tasks.errors import UserError
from tasks.inference import predict_batch as task
from tasks.inference.adapters_on_base import load_adapters
from tasks.records import PredictionRecord

PROMPTS = [f"What is {'very ' * (number % 5)}question {number}?" for number in range(9)]


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


def base_settings(base: Path) -> BaseModelSettings:
    """Give a base in float32."""
    return BaseModelSettings.model_validate({"source": str(base), "dtype": "float32"})


class Predicting:
    """The task on tiny models, in a folder of the test's own."""

    def __init__(self, base: Path, adapters: dict[str, Path], folder: Path) -> None:
        self.base, self.adapters, self.folder = base, adapters, folder

    def __call__(self, source: Path, **changes: Any) -> PredictionRecord:  # noqa: ANN401
        """Answer a file's rows, in chunks of four."""
        given: dict[str, Any] = {
            "adapters": [AdapterSettings(name=n, source=str(f)) for n, f in self.adapters.items()],
            "base_model": base_settings(self.base),
            "input": str(source),
            "output": str(self.folder / f"answers{source.suffix}"),
            "max_new_tokens": 6,
            "batch_size": 3,
            "chunk_rows": 4,
        }
        return task.predict_batch.fn(PredictBatchConfig.model_validate(given | changes))


@pytest.fixture
def predict(tiny_base: Path, adapters: dict[str, Path], tmp_path: Path) -> Predicting:
    """Give the task."""
    return Predicting(tiny_base, adapters, tmp_path)


def jsonl(folder: Path, rows: Sequence[object]) -> Path:
    """Write rows; a text stands for itself."""
    file = folder / "rows.jsonl"
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    file.write_bytes("".join(line + "\n" for line in lines).encode(errors="surrogateescape"))
    return file


def routed() -> list[dict[str, object]]:
    """Give rows that go to the two adapters in turn."""
    return [{"n": n, "prompt": p, "adapter": "ab"[n % 2]} for n, p in enumerate(PROMPTS)]


def read(file: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines."""
    return [json.loads(line) for line in file.read_text().splitlines()]


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
    "no JSON": ("{nonsense", "line 2: no valid JSON"),
    "no UTF-8": ('{"prompt": "\udcff"}', "no UTF-8 text (line 2"),
    "too large a number": ('{"n": ' + "1" * 5000 + "}", "line 2: the JSON can't be read"),
    "half a character": ('{"adapter": "a", "prompt": "\\ud83d"}', "half of a surrogate pair"),
    "a key twice": ('{"prompt": "a", "prompt": "b"}', "line 2: the key 'prompt' is given twice"),
    "tools": ({"adapter": "a", "prompt": "x", "tools": [{}]}, "row 2: there is a column tools"),
    "no question": ({"adapter": "a", "note": "x"}, "row 2: a row needs one of messages, prompt"),
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
    assert "no UTF-8 text (line 3" in rows[1]["error"]


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


def stop_in_chunk(number: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the process be stopped in a chunk; tell how many rows were answered."""
    real, sizes = prediction.answer_questions, list[int]()

    def answer_questions(adapters: Any, questions: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if len(sizes) + 1 == number:
            raise KeyboardInterrupt
        sizes.append(len(questions))
        return real(adapters, questions, **kwargs)

    monkeypatch.setattr(task, "answer_questions", answer_questions)
    return sizes


def test_what_was_answered_stays_answered(
    predict: Predicting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a stop only the chunks that were not whole are answered, to the same file."""
    source = jsonl(tmp_path, routed())
    predict(source)
    whole = (tmp_path / "answers.jsonl").read_bytes()
    (tmp_path / "answers.jsonl").unlink()
    with monkeypatch.context() as patch:
        assert stop_in_chunk(3, patch) == []
        with pytest.raises(KeyboardInterrupt):
            predict(source)
    assert not (tmp_path / "answers.jsonl").exists()

    sizes = stop_in_chunk(0, monkeypatch)
    record = predict(source, batch_size=2)
    assert sizes == [1]
    assert (tmp_path / "answers.jsonl").read_bytes() == whole
    assert record.num_rows == 9


def test_other_settings_do_not_go_on(
    predict: Predicting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers of another length are not mixed in: the folder of the earlier try is named."""
    source = jsonl(tmp_path, routed())
    with monkeypatch.context() as patch:
        stop_in_chunk(2, patch)
        with pytest.raises(KeyboardInterrupt):
            predict(source)
    with pytest.raises(UserError, match="different max_new_tokens"):
        predict(source, max_new_tokens=5)
    with pytest.raises(UserError, match="different input"):
        predict(jsonl(tmp_path, [*routed(), {"prompt": "x", "adapter": "a"}]))


def test_answers_to_yesterdays_prompts_do_not_go_on(
    tiny_base: Path, adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A template that writes the time makes other prompts of the same rows."""
    own = {name: Path(shutil.copytree(f, tmp_path / name)) for name, f in adapters.items()}
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%H:%M:%S') }}" + str(tokenizer.chat_template)
    tokenizer.save_pretrained(own["a"])
    predict, source = Predicting(tiny_base, own, tmp_path), jsonl(tmp_path, routed())
    with monkeypatch.context() as patch:
        stop_in_chunk(2, patch)
        with pytest.raises(KeyboardInterrupt):
            predict(source)
    time.sleep(1)
    with pytest.raises(UserError, match="different prompts"):
        predict(source)


def test_another_base_or_adapter_does_not_go_on(
    tiny_base: Path, adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one of other packing, scale or prompts, although its weights are the same."""
    own = {name: Path(shutil.copytree(f, tmp_path / name)) for name, f in adapters.items()}
    predict, source = Predicting(tiny_base, own, tmp_path), jsonl(tmp_path, routed())
    with monkeypatch.context() as patch:
        stop_in_chunk(2, patch)
        with pytest.raises(KeyboardInterrupt):
            predict(source)
    packed = base_settings(tiny_base).model_copy(update={"quantization": "8bit"})
    with pytest.raises(UserError, match="different base_model"):
        predict(source, base_model=packed)
    file = own["a"] / "adapter_config.json"
    before = file.read_text()
    file.write_text(json.dumps({**json.loads(before), "lora_alpha": 1}))
    with pytest.raises(UserError, match="different adapters"):
        predict(source)
    file.write_text(before)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(own["b"])
    with pytest.raises(UserError, match="different adapters"):
        predict(source)


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
