"""A decoder learns the text of an answer, and nothing beside it."""

from pathlib import Path

import pytest
from agent_templates import CALL
from engine_steps import injected, train_here, training
from tiny_models import tiny_t5

from tasks.config import (
    BaseModelSettings,
    DataSettings,
    LoraSettings,
    OnLostAnswer,
    RowFormat,
    Task,
    Template,
)
from tasks.engine.base.base_models import load_tokenizer
from tasks.engine.base.sources import find_base
from tasks.engine.data.rendering.rendering import Renderer
from tasks.engine.data.rows.conversations import Example, Message
from tasks.engine.data.splits.mixing import Split
from tasks.engine.objectives.seq2seq import Seq2Seq
from tasks.errors import UserError


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Message("assistant", "", tool_calls=(CALL,)), "tool calls or reasoning"),
        (Message("assistant", "b", reasoning="c"), "tool calls or reasoning"),
        (Message("assistant", "b", is_trained=False), "its last answer has weight 0"),
    ],
)
def test_answer_that_is_more_than_text_is_refused(
    tmp_path: Path, answer: Message, message: str
) -> None:
    """An answer with tool calls, reasoning or weight 0 is refused for seq2seq."""
    base = find_base(BaseModelSettings(source=str(tiny_t5(tmp_path / "t5")), task=Task.SEQ2SEQ))
    renderer = Renderer.of(load_tokenizer(base.location, None), Template.PLAIN, RowFormat.MESSAGES)
    split = Split("rows.jsonl", "", (Example(7, (Message("user", "a"), answer)),))

    with pytest.raises(UserError, match=f"rows.jsonl, row 7: .*{message}"):
        list(Seq2Seq().tokenize(split, renderer, DataSettings(train="rows.jsonl"), base))


def test_row_whose_last_answer_is_not_trained_is_dropped_where_asked(tmp_path: Path) -> None:
    """With `on_lost_answer: drop` it has no tokens, and is counted."""
    base = find_base(BaseModelSettings(source=str(tiny_t5(tmp_path / "t5")), task=Task.SEQ2SEQ))
    renderer = Renderer.of(load_tokenizer(base.location, None), Template.PLAIN, RowFormat.MESSAGES)
    answers = (Message("assistant", "b", is_trained=False), Message("assistant", "c"))
    examples = [Example(row, (Message("user", "a"), one)) for row, one in enumerate(answers, 1)]
    settings = DataSettings(train="rows.jsonl", on_lost_answer=OnLostAnswer.DROP)

    split = Split("rows.jsonl", "", examples)
    off, kept = Seq2Seq().tokenize(split, renderer, settings, base)

    assert (off.row, off.counts) == (None, {"num_untrained_rows": 1})
    assert kept.row


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_what_stays_unquantized_is_trained_with_the_rest(tmp_path: Path, quantization: str) -> None:
    """T5's `wo` stays in float32, and autocast computes it in the type of the other layers."""
    given = {
        "source": str(tiny_t5(tmp_path / "base")),
        "task": "seq2seq",
        "dtype": "bfloat16",
        "quantization": quantization,
    }
    model, record = injected(
        tmp_path / "base",
        tmp_path,
        LoraSettings(r=2, target_modules="all-linear"),
        BaseModelSettings.model_validate(given),
    )
    assert any(name.endswith("wo") for name in record.lora.adapted)
    trained = train_here(model, record, tmp_path, training(max_steps=2))
    assert trained.train_loss > 0
