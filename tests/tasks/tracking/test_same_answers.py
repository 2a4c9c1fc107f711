"""An answer is what the model wrote, the same wherever it is asked for."""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd  # type: ignore[import-untyped]
import pytest
from batch_predictions import Predicting, base_settings, jsonl, read
from chat_templates import SHAPES
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_adapter, tiny_llama

from tasks import engine
from tasks.config import (
    AdapterSettings,
    DataSettings,
    EvaluationSettings,
    InferenceSettings,
    RowFormat,
    Task,
    Template,
)
from tasks.engine.adapters.adapter_set import AdapterSet
from tasks.engine.data.rendering.prompts import Prompt
from tasks.engine.data.rendering.rendering import Renderer
from tasks.engine.data.rows.conversations import Example, Message
from tasks.engine.data.splits.examples import read_examples
from tasks.engine.preparation import prepare_data
from tasks.engine.scoring.evaluation import evaluate
from tasks.engine.scoring.held_out import open_held_out
from tasks.engine.scoring.samples import load_and_sample
from tasks.inference.serving import bundle_adapters
from tasks.records import FileRecord, SavedRecord
from tasks.tracking.served_model.answers import read_answer
from tasks.tracking.served_model.prompts import RenderedPrompt, ask

NUM_TOKENS = 12
ROWS: list[dict[str, object]] = [
    {"prompt": f"{'very ' * (n % 5)}question {n}?{chr(10) * (n % 3)}", "completion": "x"}
    for n in range(30)
]


@dataclass(frozen=True)
class Asked:
    """A base, an adapter for it, and a file of rows."""

    base: Path
    adapter: Path
    rows: Path

    def predicted(self) -> list[str]:
        """Return what `predict` writes."""
        predict = Predicting(self.base, {"only": self.adapter}, self.rows.parent)
        record = predict(self.rows, max_new_tokens=NUM_TOKENS, overwrite=True)
        return [row["answer"] for row in read(record.output.path)]

    def served(self) -> list[str]:
        """Return what MLflow's model answers."""
        wanted = [AdapterSettings(name="only", source=str(self.adapter))]
        bundle_adapters(wanted, self.rows.parent / "bundle", None)
        model = mlflow.pyfunc.load_model(str(self.rows.parent / "bundle"))
        table = pd.DataFrame([{"prompt": row["prompt"]} for row in ROWS])
        return list(model.predict(table, params={"max_new_tokens": NUM_TOKENS}))

    def evaluated(self) -> list[str]:
        """Return what a retraining's comparison looks at."""
        adapters = AdapterSet.on(base_settings(self.base))
        adapters.load(self.adapter, "only")
        digest = hashlib.sha256(self.rows.read_bytes()).hexdigest()
        evaluation = EvaluationSettings(
            rows=str(self.rows), sha256=digest, max_new_tokens=NUM_TOKENS
        )
        rows = open_held_out(evaluation, DataSettings(train="none.jsonl"), Task.CAUSAL_LM)
        return [row.answer for row in evaluate(adapters, "only", "only", rows).scores.rows]

    def sampled(self) -> list[str]:
        """Return the samples of step 6."""
        model, base = engine.load_base(base_settings(self.base))
        data = DataSettings(train=str(self.rows), eval=str(self.rows))
        tokens = prepare_data(read_examples(data, 0), data, 0, base, self.rows.parent / "tokens")
        saved = SavedRecord(
            template="chat",
            base=base,
            adapter_name="only",
            folder=self.adapter,
            weights=FileRecord.of(self.adapter / "adapter_model.safetensors"),
            config=FileRecord.of(self.adapter / "adapter_config.json"),
            manifest=FileRecord.of(self.adapter / "manifest.json"),
            num_adapter_parameters=0,
            adapter_bytes=0,
            header_bytes=0,
            round_trip_logit_difference=0.0,
            hub_url=None,
        )
        inference = InferenceSettings(sample_rows=len(ROWS), max_new_tokens=NUM_TOKENS)
        samples = load_and_sample(model, saved, tokens.record, inference).samples
        return [one.adapter_answer for one in samples]


@pytest.mark.parametrize("has_template", [True, False], ids=["chat", "plain"])
def test_thirty_of_thirty_answers_are_the_same(tmp_path: Path, *, has_template: bool) -> None:
    """`predict`, a comparison, the samples and the served model give what was written, unstripped.

    The model is random, so many of its answers begin or end in whitespace.
    """
    base = tiny_llama(tmp_path / "base", chat_template=has_template)
    folder = tiny_adapter(base, tmp_path / "adapter")
    template = "chat" if has_template else "plain"
    recorded = {"reference": str(base), "dtype": "float32"}
    (folder / "manifest.json").write_text(
        json.dumps({"base_model": recorded, "template": template})
    )
    asked = Asked(base, folder, jsonl(tmp_path, ROWS))

    predicted = asked.predicted()
    assert sum(answer != answer.strip() for answer in predicted) > 5
    assert asked.served() == predicted
    assert asked.evaluated() == predicted
    assert asked.sampled() == predicted


PIECES = [
    *(
        " ",
        "\n",
        "\n\n",
        "\t",
        "\u3000",
        "apple",
        '"',
        "<think>",
        "</think>",
        "<think>\n\n</think>\n\n",
    ),
    *("<|im_end|>", "<|im_start|>", "<|im_start|>assistant\n", "<pad>", "<s>", "</s>", "<|end|>"),
    *("<|user|>", "<|assistant|>", "<|channel|>final", "<|message|>", "<|return|>", "<|eot|>"),
]


@cache
def _asked_of(name: str) -> tuple[Any, Prompt, RenderedPrompt]:
    tokenizer = SHAPES[name].tokenizer()
    renderer = Renderer.of(tokenizer, Template.CHAT, RowFormat.MESSAGES, SHAPES[name].end_ids())
    example = Example(1, (Message("user", "fruit?"), Message("assistant", "")))
    served = ask(tokenizer, [{"role": "user", "content": "fruit?"}])
    return tokenizer, renderer.prompt(example), served


@pytest.mark.parametrize("name", SHAPES)
@given(pieces=st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=8))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_both_readings_of_an_answer_are_one(name: str, pieces: list[str]) -> None:
    """The code that MLflow stores reads whatever a model may write as `predict` reads it."""
    tokenizer, prompt, served = _asked_of(name)
    for text in ("".join(pieces), prompt.before + "".join(pieces) + prompt.after):
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert read_answer(tokenizer, served, tokens) == prompt.read(tokenizer, tokens)
        plain = Prompt("fruit?").read(tokenizer, tokens)
        assert read_answer(tokenizer, RenderedPrompt("fruit?"), tokens) == plain
