"""Answers that people corrected or judged become rows to learn from, each counted once."""

import csv
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from batch_predictions import read
from chat_templates import SHAPES
from pyarrow import parquet
from pydantic import ValidationError
from tiny_models import tiny_tokenizer

from tasks import engine
from tasks.config import (
    JUDGED,
    PREFERENCES,
    BaseModelSettings,
    CorrectionForm,
    CorrectionsConfig,
    DataSettings,
    LearningObjective,
    LossOn,
    RowFormat,
    Template,
)
from tasks.engine.data.rendering import Renderer
from tasks.engine.data.rows import (
    detect_row_format,
    read_example,
    read_lines,
    read_question,
    read_rows,
)
from tasks.engine.data.tokens.tokenization import IGNORED, tokenized_row
from tasks.errors import UserError
from tasks.inference.corrections import write_corrections
from tasks.records import CorrectionsRecord

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIRST, SECOND = "models:/tickets/1 (sha256 0a)", "models:/tickets/2 (sha256 0b)"
ROWS: list[dict[str, Any]] = [
    {"prompt": "1+1?", "answer": "3", "correction": "2", "adapter_version": FIRST},
    {"prompt": "2+2?", "answer": "4", "accepted": True, "adapter_version": SECOND},
    {"prompt": "3+3?", "answer": "7", "accepted": False, "adapter_version": SECOND},
    {"prompt": "4+4?", "answer": "8 ", "correction": "8", "adapter_version": SECOND},
    {"prompt": "5+5?", "answer": "10", "adapter_version": SECOND},
    {"prompt": "6+6?", "answer": None, "error": "too long", "correction": "12"},
    {"prompt": "7+7?", "answer": "1", "accepted": False, "correction": "14"},
]
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Where is it?"},
]


def written(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> CorrectionsRecord:  # noqa: ANN401
    """Write the corrections of rows; the files are `answers` and `out` in the folder."""
    suffix = changes.pop("suffix", ".jsonl")
    file = folder / f"answers{suffix}"
    names = list(dict.fromkeys(name for row in rows for name in row))
    if suffix == ".csv":
        with file.open("w", newline="") as opened:
            writer = csv.DictWriter(opened, names)
            writer.writeheader()
            writer.writerows(
                {k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()}
                for row in rows
            )
    elif suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"input": str(file), "output": str(folder / f"out{suffix}"), **changes}
    return write_corrections(CorrectionsConfig.model_validate(given))


def test_each_row_counts_once_and_corrected_ones_become_pairs(tmp_path: Path) -> None:
    """Only a correction that differs from the answer is a pair, and who answered stays with it."""
    record = written(tmp_path, ROWS)
    assert read(tmp_path / "out.jsonl") == [
        {"prompt": "1+1?", "chosen": "2", "rejected": "3", "adapter_version": FIRST},
        {"prompt": "7+7?", "chosen": "14", "rejected": "1", "adapter_version": None},
    ]
    counts = record.model_dump(exclude={"output", "num_rows_per_version"})
    assert counts == {
        "num_written": 2,
        "num_rows": 7,
        "num_corrected": 2,
        "num_accepted": 1,
        "num_rejected": 1,
        "num_unchanged": 1,
        "num_unjudged": 1,
        "num_unanswered": 1,
    }
    assert record.num_rows_per_version == {SECOND: 3, FIRST: 1, "": 1}


def test_every_judged_answer_is_a_label(tmp_path: Path) -> None:
    """As labels, a corrected answer is bad and its correction good; unjudged ones are left out."""
    written(tmp_path, ROWS, form="labels")
    rows = read(tmp_path / "out.jsonl")
    assert [(row["prompt"], row["completion"], row["label"]) for row in rows] == [
        ("1+1?", "3", False),
        ("1+1?", "2", True),
        ("2+2?", "4", True),
        ("3+3?", "7", False),
        ("4+4?", "8 ", True),
        ("7+7?", "1", False),
        ("7+7?", "14", True),
    ]


QUESTIONS: dict[str, dict[str, Any]] = {
    "text": {"prompt": "Where is it?", "system": "Be brief."},
    "tools": {"prompt": "Where is it?", "tools": [TOOL]},
    "instruction": {"instruction": "Name the place.", "input": "It is here."},
    "messages": {"messages": [*TALK, {"role": "assistant", "content": "an old answer"}]},
    "ShareGPT": {"conversations": [{"from": "human", "value": "Where is it?"}]},
    "messages of a prompt": {"prompt": TALK, "system": "Be brief."},
}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("kind", QUESTIONS)
def test_a_pair_asks_what_was_answered(kind: str, suffix: str, tmp_path: Path) -> None:
    """Read back from each kind of file, a pair's prompt renders as predict rendered it."""
    asked = QUESTIONS[kind]
    written(tmp_path, [{**asked, "answer": "There.", "correction": "Here."}], suffix=suffix)
    (row,) = read_rows(str(tmp_path / f"out{suffix}"), "train", None)
    learnable = (RowFormat.PREFERENCE, RowFormat.CONVERSATIONAL_PREFERENCE)
    row_format = detect_row_format(row, "out", learnable=learnable)
    pair = read_example(1, row, row_format)
    question_format, question = read_question(1, asked)
    templates = [Template.CHAT] if "tools" in asked else [Template.CHAT, Template.PLAIN]
    for template in templates:
        expected = _renderer(template, question_format).prompt(question)
        renderer = _renderer(template, row_format)
        assert renderer.prompt(pair) == renderer.prompt(pair.as_rejected) == expected
    assert [one.messages[-1].content for one in (pair, pair.as_rejected)] == ["Here.", "There."]


@cache
def _tokenizer() -> "PreTrainedTokenizerBase":
    """Make a tokenizer whose chat template writes the tools, too."""
    tokenizer = tiny_tokenizer()
    tools = "{% if tools %}{{ tools | tojson }}{% endif %}"
    tokenizer.chat_template = tools + SHAPES["chatml"].template
    return tokenizer


def _renderer(template: Template, row_format: RowFormat) -> Renderer:
    return Renderer.of(_tokenizer(), template, row_format)


TEXT = {"prompt": "1+1?", "system": "Be brief.", "answer": "3", "correction": "2"}
MIXED: dict[str, list[dict[str, Any]]] = {
    "a conversation": [TEXT, {"messages": TALK, "answer": "There.", "correction": "Here."}],
    "an instruction": [
        {"instruction": "Add.", "input": "1", "answer": "3", "correction": "2"},
        TEXT,
    ],
    "a correction of messages": [
        TEXT,
        {
            "prompt": "Where is it?",
            "answer": "There.",
            "correction": [
                {"role": "assistant", "content": "What?"},
                {"role": "user", "content": "The fox."},
                {"role": "assistant", "content": "Here."},
            ],
        },
    ],
    "an answer that looks like messages": [
        {"prompt": "Who asks?", "answer": json.dumps(TALK[:1]), "correction": "Hi"},
        TEXT,
    ],
    "messages with a system column": [
        {"prompt": TALK, "system": "Be brief.", "answer": "There.", "correction": "Here."},
        TEXT,
    ],
}


@pytest.mark.parametrize("template", [Template.CHAT, Template.PLAIN])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("form", CorrectionForm)
@pytest.mark.parametrize("kind", MIXED)
def test_each_prompt_of_a_mixed_file_is_the_one_that_was_answered(
    kind: str, form: CorrectionForm, suffix: str, template: Template, tmp_path: Path
) -> None:
    """Where some rows need messages, the texts beside them are trained on as predict read them."""
    output = tmp_path / f"out{suffix}"
    written(tmp_path, MIXED[kind], form=form, output=str(output))
    asked = [_prompt_tokens(row, template) for row in MIXED[kind]]
    # Both answers of a pair, or each of them as a row of its own.
    expected = [tokens for tokens in asked for _ in range(2)]
    assert _trained_prompts(output, template) == expected


def _prompt_tokens(row: dict[str, Any], template: Template) -> list[int]:
    """Return the tokens of a row's prompt as predict computes them."""
    question = {k: v for k, v in row.items() if k not in ("answer", "correction")}
    row_format, example = read_question(1, question)
    return _renderer(template, row_format).prompt(example).tokens(_tokenizer())


def _trained_prompts(file: Path, template: Template) -> list[list[int]]:
    """Return the tokens before the first trained one, of each answer of a file to train on."""
    rows = read_rows(str(file), "train", None)
    learnable = PREFERENCES if "chosen" in rows[0] else JUDGED
    row_format = detect_row_format(rows[0], "out", learnable=learnable)
    renderer, found = _renderer(template, row_format), []
    for number, row in enumerate(rows, 1):
        example = read_example(number, row, row_format)
        for side in (example, example.as_rejected) if example.rejected else (example,):
            (rendered,) = renderer.rows(side)
            tokens = tokenized_row(rendered, renderer, LossOn.COMPLETION)
            start = next(at for at, label in enumerate(tokens.labels) if label != IGNORED)
            found.append(tokens.input_ids[:start])
    return found


@pytest.mark.parametrize(
    ("form", "objective"),
    [(CorrectionForm.PAIRS, LearningObjective.DPO), (CorrectionForm.LABELS, LearningObjective.KTO)],
)
def test_a_training_reads_the_prompts_that_were_answered(
    form: CorrectionForm, objective: LearningObjective, tiny_base: Path, tmp_path: Path
) -> None:
    """The data of a run, and the samples that it draws from its token file, have them, too."""
    rows = MIXED["a conversation"]
    written(tmp_path, rows, form=form)
    settings = DataSettings(
        train=str(tmp_path / "out.jsonl"), eval_fraction=0, template=Template.PLAIN
    )
    base = BaseModelSettings(source=str(tiny_base))
    data = engine.prepare_data(settings, base, 0, tmp_path / "tokens", objective)
    expected = [tokens for row in rows for tokens in [_prompt_tokens(row, Template.PLAIN)] * 2]
    found = [
        [token for token, label in zip(one.input_ids, one.labels, strict=True) if label == IGNORED]
        for one in data.train.rows
    ]
    assert found == expected
    prompts = [data.renderer.prompt(one).tokens(_tokenizer()) for one in data.train.examples]
    assert prompts == expected


def test_a_call_beside_the_question_is_no_correction(tmp_path: Path) -> None:
    """ShareGPT's calls belong to the message before them, which here would be the question's."""
    asked = [*TALK[:2], {"role": "assistant", "content": "an old answer"}]
    call = {"from": "function_call", "value": '{"name": "find", "arguments": {}}'}
    row = {"messages": asked, "answer": "b", "correction": [call]}
    with pytest.raises(UserError, match="row 1: correction begins with calls of tools, which"):
        written(tmp_path, [row])


def test_a_correction_may_call_a_tool(tmp_path: Path) -> None:
    """If one correction is messages, the whole file is, so that all its rows are of one format."""
    call = {"function": {"name": "find", "arguments": {"what": "it"}}}
    rows: list[dict[str, Any]] = [
        {"prompt": "Hi", "answer": "Ho", "correction": "Hello"},
        {
            "prompt": "Where is it?",
            "tools": [TOOL],
            "answer": "Who knows.",
            "correction": [{"role": "assistant", "content": "", "tool_calls": [call]}],
        },
    ]
    written(tmp_path, rows)
    first, second = read(tmp_path / "out.jsonl")
    assert first["chosen"] == [{"role": "assistant", "content": "Hello"}]
    assert second["tools"] == [TOOL]
    example = read_example(2, second, RowFormat.CONVERSATIONAL_PREFERENCE)
    assert example.messages[-1].tool_calls[0].name == "find"


@pytest.mark.parametrize(("answer", "correction"), [("[]", '["a"]'), ("null", "1"), ("1", "{}")])
def test_an_empty_list_is_an_answer(answer: str, correction: str, tmp_path: Path) -> None:
    """Where answers are JSON, `[]` and `null` are answers, wrong or right."""
    row = {"prompt": "Which?", "answer": answer, "correction": correction}
    record = written(tmp_path, [row, {"prompt": "And?", "answer": answer, "accepted": True}])
    assert (record.num_corrected, record.num_accepted, record.num_unanswered) == (1, 1, 0)


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    """The question's columns are mapped as predict maps them, the others are named one by one."""
    rows = [{"frage": "1+1?", "reply": "3", "right": "2", "good": "no"}]
    names = {"answer_column": "reply", "correction_column": "right", "accepted_column": "good"}
    written(tmp_path, rows, columns={"prompt": "frage"}, **names)
    (row,) = read(tmp_path / "out.jsonl")
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("1+1?", "2", "3")


ONE = {"prompt": "1+1?", "answer": "3"}
MISTAKES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "no verdicts": ([ONE], {}, "has neither a column accepted (true or false) nor a column correc"),
    "not predict's": ([{"prompt": "a", "accepted": True}], {}, "has no column answer, which"),
    "no pair": (
        [{**ONE, "accepted": True}],
        {},
        "nothing to learn from its 1 rows (0 corrected",
    ),
    "no label": ([{**ONE, "accepted": None}], {"form": "labels"}, "a label needs a verdict or a"),
    "maybe": ([{**ONE, "accepted": "maybe"}], {}, 'row 1: accepted is "maybe"; it must be true'),
    "both": (
        [{**ONE, "accepted": True, "correction": "2"}],
        {},
        "row 1: accepted is true, but correction differs from the answer; empty one of the two",
    ),
    "no text": ([{**ONE, "correction": 2}], {}, "row 1: correction is 2; write the right answer"),
    "an object": (
        [{**ONE, "correction": {"product": "kettle"}}],
        {},
        "write the right answer as text, or as the assistant's messages",
    ),
    "a list of verdicts": ([{**ONE, "accepted": [True]}], {}, "row 1: accepted is [true]; it must"),
    "the question again": (
        [{**ONE, "correction": [*TALK, {"role": "assistant", "content": "b"}]}],
        {},
        "row 1: correction begins with the user's message",
    ),
    "no answer": ([{**ONE, "correction": TALK[1:]}], {}, "row 1: the last message is the user's"),
    "classes": ([{"text": "a", "answer": "b", "correction": "c"}], {}, "format text, which is"),
    "no question": ([{"answer": "b", "correction": "c"}], {}, "row 1: a row needs one of messages"),
    "renamed": ([{**ONE, "correction": "2"}], {"columns": {"prompt": "q"}}, "columns names 'q'"),
}


def test_a_carriage_return_stays_within_its_cell(tmp_path: Path) -> None:
    """Python's writer leaves it bare in CSV, where its reader takes it for the end of a line."""
    corrected = {**ONE, "correction": "x\ry"}
    written(tmp_path, [corrected, {**ONE, "correction": "2"}], suffix=".csv")
    found = [row for row in read_lines(tmp_path / "out.csv") if not isinstance(row, UserError)]
    assert [row["chosen"] for row in found] == ["x\ry", "2"]


def test_the_version_takes_no_column_that_is_learned() -> None:
    """It would replace what is learned by the name of who answered."""
    given = {"input": "a.jsonl", "output": "b.jsonl", "version_column": "chosen"}
    with pytest.raises(ValidationError, match="version_column is chosen, which is a column of"):
        CorrectionsConfig.model_validate(given)


@pytest.mark.parametrize("case", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_message_and_nothing_is_written(
    case: tuple[list[dict[str, Any]], dict[str, Any], str], tmp_path: Path
) -> None:
    """What can't be learned from is refused as a whole; not even a half of the output is left."""
    rows, changes, message = case
    with pytest.raises(UserError) as refused:
        written(tmp_path, rows, **changes)
    assert message in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]


def test_an_existing_output_is_kept(tmp_path: Path) -> None:
    """Last week's pairs are replaced only if that is asked for."""
    (tmp_path / "out.jsonl").write_text("kept")
    with pytest.raises(UserError, match="exists; choose another output, or set overwrite"):
        written(tmp_path, ROWS)
    assert (tmp_path / "out.jsonl").read_text() == "kept"
    assert written(tmp_path, ROWS, overwrite=True).num_written == 2
