"""The task of turning a text into another, through the whole flow, on a tiny T5."""

import json
from pathlib import Path

import pytest
import torch
from engine_steps import loaded
from flow_runs import sums, tiny_config
from mlflow_runs import client_of
from tiny_models import tiny_t5

from flows.cli import runs
from tasks.config import BaseModelSettings, DataSettings, PredictBatchConfig, Task
from tasks.engine.base.sources import find_base
from tasks.engine.batching.batches import as_items
from tasks.engine.data.splits.examples import read_examples
from tasks.engine.data.tokens.prepared_data import PreparedData
from tasks.engine.objectives.seq2seq import PairBatches, Seq2Seq
from tasks.engine.preparation import prepare_data
from tasks.errors import UserError
from tasks.inference import predict_batch as task
from tasks.inference.exporting import merge_adapter
from tasks.records import ReportRecord, TrainingPlan

PLAN = TrainingPlan(
    made_for="",
    batching="padded",
    prefix_length=0,
    batch_tokens=2**30,
    loss_in_chunks=False,
    num_threads=1,
)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save an encoder and decoder that tests must not write to."""
    return tiny_t5(tmp_path_factory.mktemp("models") / "tiny-t5")


def settings_of(t5: Path) -> BaseModelSettings:
    """Configure the base."""
    given = {"source": str(t5), "dtype": "float32", "task": "seq2seq"}
    return BaseModelSettings.model_validate(given)


def prepared(t5: Path, rows: Path, **changes: object) -> PreparedData:
    """Tokenise all rows."""
    data = DataSettings.model_validate({"train": str(rows), "eval_fraction": 0, **changes})
    sets = read_examples(data, 0, Task.SEQ2SEQ)
    return prepare_data(sets, data, 0, find_base(settings_of(t5)), rows.parent / "tokens")


def test_the_loss_is_the_plain_one(t5: Path, tmp_path: Path) -> None:
    """Rows in padded micro-batches have the loss of transformers' own, which each has alone."""
    model, _ = loaded(t5, settings_of(t5))
    rows = prepared(t5, sums(tmp_path / "rows.jsonl")).train.rows
    alone = [
        len(row.labels)
        * model(
            input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])
        ).loss.item()
        for row in rows
    ]
    micro_batches = PairBatches(model.config.pad_token_id, 100)(as_items(rows))["micro_batches"]
    losses = [Seq2Seq().loss(model, micro_batch, PLAN)[0].item() for micro_batch in micro_batches]
    assert len(micro_batches) > 1
    assert sum(losses) == pytest.approx(sum(alone), rel=1e-5)


def test_prompt_and_answer_are_two_texts(t5: Path, tmp_path: Path) -> None:
    """Both end with the end token, and both are cut by themselves, which is counted."""
    file = tmp_path / "rows.jsonl"
    row = {"instruction": "What is the capital", "input": "of France?", "output": "Paris"}
    file.write_text(json.dumps(row))
    data = prepared(t5, file)
    tokenizer = data.renderer.tokenizer
    (only,) = data.train.rows
    assert tokenizer.decode(only.labels) == f"Paris{tokenizer.eos_token}"
    assert "of France?" in tokenizer.decode(only.input_ids)
    assert only.input_ids[-1] == tokenizer.eos_token_id
    short = prepared(t5, file, max_length=8).train.record
    assert (short.num_shortened_texts, short.num_shortened_answers) == (1, 0)
    assert short.num_dropped_rows == 0


def test_the_prompt_is_not_learned(t5: Path, tmp_path: Path) -> None:
    """A loss on all tokens is refused: the prompt is read only."""
    with pytest.raises(UserError, match="does not generate the prompt"):
        prepared(t5, sums(tmp_path / "rows.jsonl"), loss_on="all")


@pytest.fixture(scope="module")
def report(
    prefect_server: None, t5: Path, tmp_path_factory: pytest.TempPathFactory
) -> ReportRecord:
    """Run the flow once."""
    config = tiny_config(
        t5,
        sums(tmp_path_factory.mktemp("flow") / "sums.jsonl"),
        base_model={"task": "seq2seq", "hub_id": None},
        lora={"target_modules": "all-linear"},
        training={"num_train_epochs": 4, "learning_rate": 2e-2},
        inference={"sample_rows": 4, "max_new_tokens": 8},
    )
    return runs.execute(runs.create_run(config))


def test_the_six_steps_learn(report: ReportRecord) -> None:
    """The loss falls, the adapter loads from its file, and both models answer."""
    losses = [point.train_loss for point in report.trained.loss_curve if point.train_loss]
    assert losses[-1] < 0.8 * losses[0]
    assert report.loaded.logit_effect > 0
    assert report.loaded.num_samples == 4
    card = (report.saved.folder / "README.md").read_text()
    assert "AutoModelForSeq2SeqLM" in card


def test_predict_mlflow_and_the_merged_model_answer_alike(
    report: ReportRecord, tmp_path: Path
) -> None:
    """A row's answer is the same in a file, from MLflow, and by the merged model alone."""
    import mlflow.pyfunc
    import pandas as pd  # type: ignore[import-untyped]
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    prompts = [str(json.loads(line)["prompt"]) for line in _rows(tmp_path)]
    given = PredictBatchConfig.model_validate(
        {
            "adapters": [{"source": str(report.saved.folder)}],
            "input": str(tmp_path / "rows.jsonl"),
            "output": str(tmp_path / "answers.jsonl"),
            "max_new_tokens": 8,
        }
    )
    record = task.predict_batch.fn(given)
    answers = [json.loads(line)["answer"] for line in record.output.path.read_text().splitlines()]

    assert report.model_uri
    stored = client_of(report.run).get_logged_model(report.model_uri.removeprefix("models:/"))
    model = mlflow.pyfunc.load_model(stored.artifact_location.removeprefix("file://"))
    served = model.predict(pd.DataFrame({"prompt": prompts}), params={"max_new_tokens": 8})
    assert served == answers

    source = str(report.saved.folder)
    merge_adapter(source, tmp_path / "merged", None, "auto", None, max_new_tokens=8)
    alone = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    for prompt, answer in zip(prompts, answers, strict=True):
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        written = alone.generate(**inputs, max_new_tokens=8, do_sample=False)
        assert tokenizer.decode(written[0], skip_special_tokens=True) == answer


def _rows(folder: Path) -> list[str]:
    return sums(folder / "rows.jsonl", 3).read_text().splitlines()
