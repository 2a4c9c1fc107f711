"""A model that has learned its rows perfectly is judged so, wherever its answers are looked at."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow.pyfunc
import pandas as pd  # type: ignore[import-untyped]
import pytest
from chat_templates import SHAPES
from tiny_models import reciting_llama

from tasks.config import (
    AdapterSettings,
    BaseModelSettings,
    DataSettings,
    EvaluationSettings,
    RowFormat,
    Task,
    Template,
)
from tasks.engine.adapters.adapter_set import AdapterSet
from tasks.engine.adapters.folders import find_adapter
from tasks.engine.data.rendering.rendering import Renderer
from tasks.engine.data.rows.conversations import Example, Message
from tasks.engine.scoring.evaluation import evaluate
from tasks.engine.scoring.exact_match import exact_match_on
from tasks.engine.scoring.held_out import open_held_out
from tasks.engine.scoring.prediction import Question, answer_questions
from tasks.inference.serving import bundle_adapters

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROW = {"prompt": "What is the capital?", "completion": "Paris"}
EXAMPLE = Example(1, (Message("user", ROW["prompt"]), Message("assistant", ROW["completion"])))


def thinking_tokenizer() -> "PreTrainedTokenizerFast":
    """Make a tokenizer whose template writes an empty thought before each answer."""
    tokenizer = SHAPES["qwen3"].tokenizer()
    tokenizer.chat_template = str(tokenizer.chat_template).replace(
        "'<think>\n' + thought + '\n</think>\n\n'", "'<think>' + thought + '</think>'"
    )
    return tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Save a base that recites the row as the template writes it, an adapter, and the row."""
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    folder, tokenizer = tmp_path_factory.mktemp("reciting"), thinking_tokenizer()
    rendered = Renderer(tokenizer, Template.CHAT).full(EXAMPLE)
    start, end = rendered.answers[0]
    tokens = tokenizer(rendered.text[start - 1 : end], add_special_tokens=False)["input_ids"]
    base = reciting_llama(folder / "base", tokenizer, tokens)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(folder / "adapter")
    recorded = {"base_model": {"reference": str(base), "dtype": "float32"}, "template": "chat"}
    (folder / "adapter" / "manifest.json").write_text(json.dumps(recorded))
    (folder / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    return {"base": base, "adapter": folder / "adapter", "rows": folder / "rows.jsonl"}


@pytest.fixture(scope="module")
def adapters(folders: dict[str, Path]) -> AdapterSet:
    """Load the base with the adapter."""
    settings = {"source": str(folders["base"]), "dtype": "float32"}
    loaded = AdapterSet.on(BaseModelSettings.model_validate(settings))
    loaded.load(folders["adapter"], "only")
    return loaded


def test_evaluation_finds_it_right(adapters: AdapterSet, folders: dict[str, Path]) -> None:
    """All metrics of a retraining's comparison are those of the content alone."""
    digest = hashlib.sha256(folders["rows"].read_bytes()).hexdigest()
    evaluation = EvaluationSettings(rows=str(folders["rows"]), sha256=digest, max_new_tokens=12)
    rows = open_held_out(evaluation, DataSettings(train="none.jsonl"), Task.CAUSAL_LM)

    [row] = evaluate(adapters, "only", "only", rows).scores.rows

    assert row.answer == "Paris"
    assert row.metrics["exact_match"] == row.metrics["token_f1"] == 1.0


def test_a_merge_s_score_finds_it_right(adapters: AdapterSet, folders: dict[str, Path]) -> None:
    """The share of right answers beside a merged model is one of the content, too."""
    score = exact_match_on(
        folders["rows"],
        find_adapter(folders["adapter"]),
        adapters.tokenizer,
        task=Task.CAUSAL_LM,
        max_new_tokens=12,
        batch_size=2,
    )

    assert score(adapters.model) == 1.0


def test_batch_answers_are_the_content(adapters: AdapterSet) -> None:
    """What `predict` hands out lacks what the template writes around it."""
    asked = Question("only", RowFormat.PROMPT_COMPLETION, EXAMPLE)

    [answered] = answer_questions(adapters, [asked], max_new_tokens=12, batch_size=2)

    assert answered.answer == "Paris"


def test_served_answers_are_the_content(folders: dict[str, Path], tmp_path: Path) -> None:
    """So does what MLflow serves."""
    wanted = [AdapterSettings(name="only", source=str(folders["adapter"]))]
    bundle_adapters(wanted, tmp_path / "bundle", None)
    model = mlflow.pyfunc.load_model(str(tmp_path / "bundle"))

    answers = model.predict(
        pd.DataFrame([{"prompt": ROW["prompt"]}]), params={"max_new_tokens": 12}
    )
    assert list(answers) == ["Paris"]
