"""What a model can't read is reported before its weights are loaded, or held to what it can."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from engine_steps import gpt2_base, loaded
from tiny_models import tiny_llama
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tasks.config import BaseModelSettings, DataSettings, Task
from tasks.engine.adapters.adapter_set import AdapterSet
from tasks.engine.base.input_limits import limits_in
from tasks.engine.base.sources import find_base
from tasks.engine.data.rendering.prompts import Prompt
from tasks.engine.data.splits.examples import read_examples
from tasks.engine.data.tokens.prepared_data import PreparedData
from tasks.engine.objectives.generation import answer
from tasks.engine.preparation import prepare_data
from tasks.engine.scoring.prediction import Question, answer_questions
from tasks.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POSITIONS = 24
SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 1,
}


def prepared(base: Path, folder: Path, rows: list[dict[str, str]], **data: object) -> PreparedData:
    """Tokenise rows for the base in a folder, whose weights are not loaded."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DataSettings.model_validate({"train": str(file), "eval_fraction": 0} | data)
    sets = read_examples(settings, 0, Task.CAUSAL_LM, ())
    source = find_base(BaseModelSettings(source=str(base)))
    return prepare_data(sets, settings, 0, source, folder / "tokens")


def reads(model: "PreTrainedModel", count: int) -> bool:
    """Return whether the model computes so many tokens."""
    try:
        with torch.no_grad():
            model.eval()(input_ids=torch.full((1, count), 5))
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize(
    "kind", ["gpt2", "opt", "gptj", "biogpt", "roberta", "bert", "llama", "gpt_neox", "xglm"]
)
def test_the_limit_is_where_the_model_ends(kind: str) -> None:
    """The positions are those that the model can compute, and one more fails; or none fails."""
    sizes = SIZES | {"rotary_dim": 8, "word_embed_proj_dim": 32, "is_decoder": True}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    limit = limits_in(model).fixed_positions

    assert reads(model, limit or POSITIONS)
    assert reads(model, (limit or POSITIONS) + 1) is (limit is None)


def test_rows_are_held_to_the_positions(tmp_path: Path) -> None:
    """A row is cut at the model's positions and counted, whatever `max_length` allows."""
    base = gpt2_base(tmp_path / "base")
    data = prepared(base, tmp_path, [{"prompt": "fox", "completion": " dog" * 100}])

    assert data.train.record.longest_tokens == 64
    assert data.train.record.num_shortened_answers == 1


def test_an_answer_beyond_the_positions_is_told(tmp_path: Path) -> None:
    """The row and the positions are named, and not `max_length`, which would not help."""
    base = gpt2_base(tmp_path / "base")
    rows = [{"prompt": "fox", "completion": " dog"}, {"prompt": "fox " * 90, "completion": "dog"}]
    with pytest.raises(UserError, match=r"row 2: .* beyond the model's 64 positions \(") as e:
        prepared(base, tmp_path, rows)
    assert "max_length" not in str(e.value)
    dropped = prepared(base, tmp_path, rows, on_lost_answer="drop")
    assert dropped.train.record.num_dropped_rows == 1


def test_rotary_positions_have_no_end(tiny_base: Path, tmp_path: Path) -> None:
    """A Llama learns rows beyond the positions that it was made for."""
    rows = [{"prompt": "fox", "completion": " dog" * 1200}]
    data = prepared(tiny_base, tmp_path, rows, max_length=4096)
    assert data.train.record.longest_tokens > 1024


def test_answers_end_with_the_positions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each answer has the room that its own prompt leaves, however prompts are batched."""
    model, _ = loaded(gpt2_base(tmp_path / "base"))
    model.generation_config.eos_token_id = None
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    tokenizer.eos_token_id = None
    prompts = ["fox", "The lazy dog jumps over the quick brown fox " * 2]
    tokenizer.pad_token_id = 0

    def answers(batch_size: int, prompts: list[str]) -> list[str]:
        return answer(
            model,
            tokenizer,
            [Prompt(text) for text in prompts],
            max_new_tokens=128,
            batch_size=batch_size,
        )

    assert answers(2, prompts) == answers(1, prompts)
    assert "2 of 2 answers are limited to less than max_new_tokens 128" in caplog.text
    with pytest.raises(UserError, match="the model has 64 positions"):
        answers(1, ["fox " * 90])


@pytest.fixture
def larger_tokenizer(tmp_path: Path) -> Path:
    """Save a base whose tokenizer has two tokens more than it has embeddings; one pads."""
    base = tiny_llama(tmp_path / "base", layers=1, chat_template=False)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.add_special_tokens({"pad_token": "<filler>"})
    tokenizer.save_pretrained(base)
    return base


def test_a_token_without_an_embedding_is_told(larger_tokenizer: Path, tmp_path: Path) -> None:
    """The row, the token and both sizes are named; tokens that do not occur are no matter."""
    rows = [{"prompt": "The fox is", "completion": " quick"}]
    assert prepared(larger_tokenizer, tmp_path, rows).train.rows
    rows.append({"prompt": "The <extra> is", "completion": " lazy"})
    with pytest.raises(UserError, match=r"row 2: .*'<extra>' as token (\d+), but .* \d+ tokens\)"):
        prepared(larger_tokenizer, tmp_path, rows)


def test_a_question_without_an_embedding_is_told(larger_tokenizer: Path) -> None:
    """Among answers the row is reported, and others are padded with a token that there is."""
    from tiny_models import tiny_adapter

    from tasks.config import RowFormat
    from tasks.engine.data.rows.conversations import Example

    settings = BaseModelSettings.model_validate(
        {"source": str(larger_tokenizer), "dtype": "float32"}
    )
    adapters = AdapterSet.on(settings)
    adapters.load(tiny_adapter(larger_tokenizer, larger_tokenizer.parent / "adapter"), "a")
    texts = ("The fox", "The <extra>", "What is the capital of France?")
    questions = [
        Question("a", RowFormat.TEXT, Example(row=n, text=text, messages=()))
        for n, text in enumerate(texts, 1)
    ]
    given = answer_questions(adapters, questions, max_new_tokens=2, batch_size=3)
    assert [one.error is None for one in given] == [True, False, True]
    assert "row 2: the tokenizer writes '<extra>' as token" in str(given[1].error)
