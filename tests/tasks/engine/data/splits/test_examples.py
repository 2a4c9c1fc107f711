"""Rows of every format become checked examples, split the same way each time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.config import DataSettings, RowFormat
from tasks.engine.data.rows.conversations import Example, Message
from tasks.engine.data.rows.reading_errors import BadRowError
from tasks.engine.data.rows.row_formats import read_question
from tasks.engine.data.rows.row_sources import Row
from tasks.engine.data.splits.examples import content_sha256, read_examples
from tasks.errors import UserError

USER, ANSWER = Message("user", "a"), Message("assistant", "b")


def written(folder: Path, rows: list[Row], name: str = "rows.jsonl") -> str:
    """Write rows as JSONL."""
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def many(count: int) -> list[Row]:
    """Make that many different rows."""
    return [{"prompt": f"prompt {number}", "completion": "b"} for number in range(count)]


@pytest.mark.parametrize(
    ("row", "row_format", "messages"),
    [
        ({"prompt": "a", "completion": "b"}, RowFormat.PROMPT_COMPLETION, (USER, ANSWER)),
        (
            {"prompt": "a", "completion": "b", "system": "s"},
            RowFormat.PROMPT_COMPLETION,
            (Message("system", "s"), USER, ANSWER),
        ),
        (
            {"instruction": "a", "input": "c", "output": "b", "text": "a c b"},
            RowFormat.INSTRUCTION,
            (Message("user", "a\n\nc"), ANSWER),
        ),
        (
            {"instruction": "a", "input": "", "output": "b", "system": None},
            RowFormat.INSTRUCTION,
            (USER, ANSWER),
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "a"}]},
                    {"role": "assistant", "content": "b", "name": None},
                ]
            },
            RowFormat.MESSAGES,
            (USER, ANSWER),
        ),
    ],
)
def test_a_row_becomes_messages(
    tmp_path: Path, row: Row, row_format: RowFormat, messages: tuple[Message, ...]
) -> None:
    """The columns tell the format; prompt and answer are the user's and the assistant's turns."""
    sets = read_examples(DataSettings(train=written(tmp_path, [row])), seed=0)
    assert sets.train.row_format is row_format
    (example,) = sets.train.examples
    assert example == Example(1, messages)
    assert (example.prompt_messages, example.answer) == (messages[:-1], "b")


def test_plain_text_has_no_turns(tmp_path: Path) -> None:
    """A `text` row is kept as it is, blanks included."""
    sets = read_examples(DataSettings(train=written(tmp_path, [{"text": " a\n"}])), seed=0)
    assert tuple(sets.train.examples) == (Example(1, (), " a\n"),)
    assert sets.train.examples[0].answer == ""


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "the column completion is missing; the row's columns: prompt"),
        ({"prompt": "a", "completion": " \n"}, "completion is empty"),
        ({"prompt": "a", "completion": None}, "completion is null; it must be text"),
        ({"prompt": ["a"], "completion": "b"}, r'prompt is \["a"\]; it must be text'),
        ({"prompt": "a", "completion": "b", "system": 1}, "system is 1"),
        ({"prompt": "a", "completion": "\ud800"}, "half of a surrogate pair"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, row: Row, message: str) -> None:
    """One bad row among good ones is refused with its number and what is wrong."""
    settings = DataSettings(train=written(tmp_path, [*many(2), row, *many(2)]), max_train_rows=1)
    with pytest.raises(UserError, match=rf"rows\.jsonl, row 3: .*{message}"):
        read_examples(settings, seed=0)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("a", 'messages is "a"; it must be a list'),
        ([], "it must be a list"),
        (["a"], 'message 1 is "a"; it must be an object with role and content'),
        ([{"role": "user"}], "message 1 .* role and content"),
        ([{"role": "bot", "content": "a"}], 'role "bot"; possible: system, user, assistant'),
        ([{"role": "user", "content": "a"}], "the last message is the user's"),
        ([{"role": "assistant", "content": "a"}], "put the user's before it"),
        ([{"role": "user", "content": 1}], "the content of message 1 is 1; it must be text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "it must be text"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}], "is empty"),
    ],
)
def test_a_malformed_chat_is_named(tmp_path: Path, messages: object, message: str) -> None:
    """A chat is a list of known roles with text that ends with the assistant."""
    with pytest.raises(UserError, match=f"row 1: .*{message}"):
        read_examples(DataSettings(train=written(tmp_path, [{"messages": messages}])), seed=0)


CHAT: Row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def answered(**more: object) -> Row:
    """Make a conversation whose answer has other keys, too."""
    return {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", **more},
        ]
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (answered(images=["a.png"]), "message 2 has the key images: only text is read"),
        (answered(loss_scale=0.5), "the loss_scale of message 2 is 0.5; it must be 0 or 1"),
        (CHAT | {"label": False}, "a column label: .*bad ones would be imitated"),
        (many(1)[0] | {"label": "True"}, "a column label"),
        (CHAT | {"rejected": "c"}, "a column rejected: .*training.objective: dpo"),
        (CHAT | {"images": ["a.png"]}, "a column images: only text is read"),
        ({"text": "a", "audios": ["a.mp3"]}, "a column audios"),
        (many(1)[0] | {"loss_weight": 0.5}, "a column loss_weight"),
        ({"text": "a", "weight": 0}, "a column weight: all rows have the weight 1"),
        (
            many(1)[0] | {"history": [["c", "d"]]},
            "a column history: .*write the row as messages",
        ),
    ],
)
def test_what_changes_the_meaning_of_a_row_is_refused(
    tmp_path: Path, row: Row, message: str
) -> None:
    """Without what is not read, the row would teach something else than its author wrote."""
    with pytest.raises(UserError, match=rf"rows\.jsonl, row 1: (there is )?{message}"):
        read_examples(DataSettings(train=written(tmp_path, [row])), seed=0)


def test_what_else_is_not_read_is_counted(tmp_path: Path) -> None:
    """Each such column and key is named with its rows, those of held-out rows among them."""
    empty: dict[str, object] = {"refusal": None, "images": []}
    more: Row = {"id": 1, "parallel_tool_calls": True, "audios": "[]"}
    rows = [answered(**empty) | more, answered(refusal="x") | {"id": 2}]
    held_out = [CHAT | {"id": 3, "label": "good"}]
    settings = DataSettings(
        train=written(tmp_path, rows), eval=written(tmp_path, held_out, "eval.jsonl")
    )
    sets = read_examples(settings, seed=0)
    assert sets.unread == {
        "id": 3,
        "parallel_tool_calls": 1,
        "refusal of messages": 1,
        "label": 1,
    }


def test_a_system_column_beside_messages_is_their_system_turn(tmp_path: Path) -> None:
    """As in rows of prompt and completion; two different system texts are refused."""
    own: Row = {"messages": [{"role": "system", "content": "s"}, *CHAT["messages"]]}  # type: ignore[misc]
    rows: list[Row] = [CHAT | {"system": "s"}, own | {"system": "s"}, own | {"system": None}]
    settings = DataSettings(train=written(tmp_path, rows), eval_fraction=0)
    examples = read_examples(settings, seed=0).train.examples
    assert {one.messages for one in examples} == {(Message("system", "s"), USER, ANSWER)}
    with pytest.raises(UserError, match=r'row 1: the column system is "t", .* keep one'):
        read_examples(DataSettings(train=written(tmp_path, [own | {"system": "t"}])), seed=0)


def test_of_a_question_counts_what_is_asked() -> None:
    """How an answer is to be learned is no part of the question; earlier turns are."""
    asked = answered(weight=0, images=["a.png"]) | {"label": False, "system": "s"}
    _, example = read_question(1, asked)
    assert example.prompt_messages == (Message("system", "s"), USER)
    earlier: list[object] = [*answered(images=["a.png"])["messages"]]  # type: ignore[misc]
    with pytest.raises(BadRowError, match="message 2 has the key images"):
        read_question(1, {"messages": [*earlier, {"role": "user", "content": "c"}]})
    with pytest.raises(BadRowError, match="there is a column history"):
        read_question(1, {"prompt": "a", "history": [["c", "d"]]})


def test_a_key_given_twice_in_a_cell_is_refused(tmp_path: Path) -> None:
    """Messages that a CSV file holds as JSON are read as strictly as JSON itself."""
    path = tmp_path / "rows.csv"
    path.write_text('messages,id\n"[{""role"": ""user"", ""role"": ""assistant""}]",1\n')
    with pytest.raises(UserError, match="row 1: in messages, the key 'role' is given twice"):
        read_examples(DataSettings(train=str(path)), seed=0)


def test_the_order_of_classes_is_the_same_in_every_process(tmp_path: Path) -> None:
    """Numbers that are equal, as `1` and `01`, have a fixed order, too."""
    names = ["1", "01", "001", "2", "02"]
    rows: list[Row] = [{"text": "a", "label": name} for name in names]
    code = (
        "import sys; from tasks.config import DataSettings, Task; "
        "from tasks.engine.data.splits.examples import read_examples; "
        "print(read_examples(DataSettings(train=sys.argv[1]), 0, Task('sequence-classification'))"
        ".labels)"
    )
    command = [sys.executable, "-c", code, written(tmp_path, rows)]
    said = {
        subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": seed}, check=True, capture_output=True
        ).stdout
        for seed in "123"
    }
    assert said == {b"('001', '01', '1', '02', '2')\n"}


@pytest.mark.parametrize(
    ("row", "wanted", "message"),
    [
        ({"question": "a", "reply": "b"}, "auto", "columns question, reply; possible: messages"),
        ({"promt": "a", "completion": "b"}, "auto", "rename promt to prompt?"),
        ({"prompt": "a", " completion": "b"}, "auto", "remove the spaces around completion"),
        ({"prompt": "a", "x": "b"}, "auto", "for prompt-completion, completion is missing"),
        ({"prompt": "a", "completion": "b"}, "text", "possible: text: text"),
        (
            {"talk": [{"from": "human", "value": "a"}]},
            "auto",
            r"rename talk to messages, or set columns: \{messages: talk\}",
        ),
        (
            {"question": "a", "answer": "b"},
            "auto",
            r"set columns: \{prompt: question, comp",
        ),
        ({"chat": [{"role": "user", "content": "a"}]}, "auto", "rename chat to messages, or set"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            "auto",
            r"which of two answers is preferred .* set training\.objective: dpo",
        ),
        ({"completions": "a", "content": "b"}, "auto", "rename completions to completion"),
        ({"chat": "a"}, "auto", "rename the columns to one of these, or name them in columns"),
        (
            {"prompt": "a", "completion": "b", "messages": []},
            "auto",
            r"fit messages and prompt-completion; set data\.format",
        ),
    ],
)
def test_unfit_columns_are_listed(tmp_path: Path, row: Row, wanted: str, message: str) -> None:
    """Columns that fit no format, or two, are reported beside what would fit."""
    settings = DataSettings(train=written(tmp_path, [row]), format=RowFormat(wanted))
    with pytest.raises(UserError, match=message):
        read_examples(settings, seed=0)


@pytest.mark.parametrize(
    ("num_rows", "fraction", "num_held_out"),
    [(1, 0.5, 0), (2, 0.01, 1), (2, 0.99, 1), (10, 0, 0), (10, 0.2, 2)],
)
def test_held_out_rows_are_a_partition(
    tmp_path: Path, num_rows: int, fraction: float, num_held_out: int
) -> None:
    """Each row is in one split, in its order; there is one to train on and one to test on."""
    settings = DataSettings(train=written(tmp_path, many(num_rows)), eval_fraction=fraction)
    sets = read_examples(settings, seed=3)
    train = [one.row for one in sets.train.examples]
    held_out = [one.row for one in sets.eval.examples] if sets.eval else []
    assert len(held_out) == num_held_out
    assert (train, held_out) == (sorted(train), sorted(held_out))
    assert sorted(train + held_out) == list(range(1, num_rows + 1))


def test_the_seed_decides_the_split(tmp_path: Path) -> None:
    """Equal seeds give equal splits, other seeds other ones."""
    settings = DataSettings(train=written(tmp_path, many(50)), eval_fraction=0.5)
    assert read_examples(settings, seed=1) == read_examples(settings, seed=1)
    assert read_examples(settings, seed=1).train != read_examples(settings, seed=2).train


def test_fewer_training_rows_leave_the_held_out_ones(tmp_path: Path) -> None:
    """`max_train_rows` draws from the training rows in their order and changes no held-out row."""
    train = written(tmp_path, many(30))
    whole = read_examples(DataSettings(train=train), seed=0)
    fewer = read_examples(DataSettings(train=train, max_train_rows=5), seed=0)
    rows = [one.row for one in fewer.train.examples]
    assert len(rows) == 5
    assert rows == sorted(rows)
    assert set(fewer.train.examples) < set(whole.train.examples)
    assert fewer.eval == whole.eval


def test_a_held_out_row_that_is_trained_on_is_counted(tmp_path: Path) -> None:
    """Rows count as the same by what is learned from them, whatever their other columns."""
    known: Row = {"prompt": "prompt 1", "completion": "b", "id": 7}
    held_out = written(tmp_path, [known, {"prompt": "new", "completion": "b"}], "eval.jsonl")
    sets = read_examples(DataSettings(train=written(tmp_path, many(3)), eval=held_out), seed=0)
    assert sets.eval is not None
    assert (len(sets.train.examples), len(sets.eval.examples)) == (3, 2)
    assert sets.num_eval_rows_in_train == 1


def test_held_out_rows_are_read_in_the_training_format(tmp_path: Path) -> None:
    """A mistake in the held-out file is named by that file."""
    held_out = written(tmp_path, [{"text": "a"}], "eval.jsonl")
    settings = DataSettings(train=written(tmp_path, many(3)), eval=held_out)
    with pytest.raises(UserError, match=r"eval\.jsonl, row 1: the column prompt is missing"):
        read_examples(settings, seed=0)


def test_a_split_of_a_file_is_refused(tmp_path: Path) -> None:
    """`eval_split` needs a source that has splits."""
    settings = DataSettings(train=written(tmp_path, many(3)), eval_split="test")
    with pytest.raises(UserError, match="which has no splits"):
        read_examples(settings, seed=0)


def test_the_revision_belongs_to_one_dataset() -> None:
    """One revision for two Hub datasets is refused before any is fetched."""
    settings = DataSettings(train="org/train", eval="org/eval", revision="v1")
    with pytest.raises(UserError, match="could be of org/train or of org/eval"):
        read_examples(settings, seed=0)


def test_the_hash_is_of_content_and_order(tmp_path: Path) -> None:
    """Column order and file format do not change the hash; a value or the rows' order do."""
    row: Row = {"prompt": "ä", "completion": "b"}
    assert content_sha256([row]) == content_sha256([dict(reversed(row.items()))])
    assert content_sha256([row, *many(1)]) != content_sha256([*many(1), row])
    assert content_sha256([row]) != content_sha256([{**row, "prompt": "a"}])
    sets = read_examples(DataSettings(train=written(tmp_path, many(3)), eval_fraction=0), seed=0)
    assert sets.train.sha256 == content_sha256(many(3))
