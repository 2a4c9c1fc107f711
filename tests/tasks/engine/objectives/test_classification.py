"""The task of classifying texts, through the engine's steps: rows to labels with probabilities."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from engine_steps import (
    LABELLED,
    LABELS,
    injected,
    loaded,
    prepared,
    save_here,
    train_here,
    trained,
    training,
)
from sklearn.metrics import accuracy_score, f1_score
from starting_points import starting_configuration
from tiny_models import tiny_bert, tiny_llama, tiny_tokenizer

from tasks.config import BaseModelSettings, DataSettings, LoraSettings, Task, TrainingSettings
from tasks.engine.adapters import adapter_state
from tasks.engine.adapters.injection import reinject
from tasks.engine.adapters.lora import resolve_config, select
from tasks.engine.base.base_models import load_skeleton
from tasks.engine.base.sources import find_base
from tasks.engine.batching.batches import as_items
from tasks.engine.batching.padded_rows import LabeledBatches
from tasks.engine.data.splits.examples import ExampleSets, read_examples
from tasks.engine.objectives.sequence_classification import SequenceClassification
from tasks.engine.training.callbacks import TrainingProgress
from tasks.errors import UserError
from tasks.records import InjectedRecord, TrainedRecord, TrainingPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CLASSIFYING = Task.SEQUENCE_CLASSIFICATION
PLAN = TrainingPlan(
    made_for="",
    batching="padded",
    prefix_length=0,
    batch_tokens=2**30,
    loss_in_chunks=False,
    num_threads=1,
)
LEARNING = training(max_steps=40, batch_size=5, load_best_model_at_end=False)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save an encoder that tests must not write to."""
    return tiny_bert(tmp_path_factory.mktemp("models") / "tiny-bert", hidden_size=64)


def classifier(base: Path, **changes: object) -> BaseModelSettings:
    """Return a base in float32, with an output for each of the labels."""
    given = {"source": str(base), "dtype": "float32", "task": CLASSIFYING, "labels": LABELS}
    return BaseModelSettings.model_validate(given | changes)


def written(file: Path, rows: Sequence[Mapping[str, object]]) -> str:
    """Write rows as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def sets_of(folder: Path, labels: list[object], **changes: object) -> ExampleSets:
    """Read rows with these labels."""
    rows = [{"text": f"text {n}", "label": label} for n, label in enumerate(labels)]
    settings = DataSettings.model_validate({"train": written(folder / "t.jsonl", rows)} | changes)
    return read_examples(settings, 0, CLASSIFYING)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(["b", "a", "b"], ("a", "b")), ([10, 9, 10], ("9", "10"))],
    ids=["names", "numbers"],
)
def test_labels_are_those_of_the_training_rows_in_order(
    tmp_path: Path, labels: list[object], expected: tuple[str, ...]
) -> None:
    """Names are sorted as text, and numbers by their size."""
    assert sets_of(tmp_path, labels, eval_fraction=0).labels == expected


def test_a_label_without_a_training_row_is_told(tmp_path: Path) -> None:
    """A class all of whose rows were left out by `max_train_rows` is no silent output."""
    sets = sets_of(tmp_path, ["a", "b", "a"], eval_fraction=0, max_train_rows=1)
    assert sets.labels == ("a", "b")
    assert len(sets.untrained_labels) == 1


def test_held_out_rows_have_no_labels_of_their_own(tmp_path: Path) -> None:
    """A held-out label that no training row has is an error that names row and label."""
    held_out = written(tmp_path / "e.jsonl", [{"text": "x", "label": "c"}])
    with pytest.raises(UserError, match="row 1: the label 'c' is none of the 2 classes"):
        sets_of(tmp_path, ["a", "b"], eval=held_out)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "a"], "all rows have the label 'a'"),
        (["a", True], "row 2: label is true; it must be text"),
        (["a", ""], "row 2: label is empty"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(
    tmp_path: Path, labels: list[object], message: str
) -> None:
    """One class, a truth value or nothing is the user's mistake."""
    with pytest.raises(UserError, match=message):
        sets_of(tmp_path, labels)


def test_labelled_rows_go_with_their_task(tmp_path: Path) -> None:
    """A language model learns the texts; asked for the labels, it says which task that is."""
    file = written(tmp_path / "rows.jsonl", LABELLED)
    assert read_examples(DataSettings(train=file), 0).train.row_format == "text"
    labelled = DataSettings.model_validate({"train": file, "format": "labelled"})
    with pytest.raises(UserError, match=r"labelled cannot be used with this base_model\.task"):
        read_examples(labelled, 0)
    assert "task: sequence-classification" in starting_configuration(Path(file), "org/model")


@pytest.mark.parametrize("save", [tiny_bert, tiny_llama])
def test_the_loss_is_the_plain_one(save: Callable[[Path], Path], tmp_path: Path) -> None:
    """Rows in padded micro-batches have the loss that each has alone by transformers' own."""
    model, base = loaded(save(tmp_path / "base"), classifier(tmp_path / "base"))
    rows = prepared(base, tmp_path / "data").train.rows
    alone = [
        model(input_ids=torch.tensor([r.input_ids]), labels=torch.tensor(r.labels)).loss.item()
        for r in rows
    ]
    micro_batches = LabeledBatches(model.config.pad_token_id, 30)(as_items(rows))["micro_batches"]
    losses = [
        SequenceClassification().loss(model, micro_batch, PLAN)[0].item()
        for micro_batch in micro_batches
    ]
    assert len({len(row.input_ids) for row in rows}) > 1 < len(micro_batches)
    assert sum(losses) == pytest.approx(sum(alone), rel=1e-5)


def test_a_base_with_its_labels_is_one_definite_model(bert: Path) -> None:
    """The output layer that the base lacks is the same each time, whatever was drawn before."""
    first, _ = loaded(bert, classifier(bert))
    torch.rand(7)
    second, _ = loaded(bert, classifier(bert))
    head, again = (one.get_parameter("classifier.weight") for one in (first, second))
    assert torch.equal(head, again)
    assert head.std().item() > 0
    assert first.config.id2label == dict(enumerate(LABELS))


def test_texts_are_learned_by_adapter_and_head(bert: Path, tmp_path: Path) -> None:
    """All held-out rows come out right; the base stays as it was, and the head does not."""
    lora = LoraSettings(r=4, target_modules="all-linear")
    model, record = injected(bert, tmp_path, lora, classifier(bert))
    before = {name: w.clone() for name, w in adapter_state.base_weights(model)}
    result = train_here(model, record, tmp_path, LEARNING)

    after = dict(adapter_state.base_weights(model))
    assert all(torch.equal(before[name], after[name]) for name in before)
    initial = adapter_state.load_weights(record.initial_weights.path)
    final = adapter_state.load_weights(result.weights.path)
    assert not torch.equal(initial["classifier.weight"], final["classifier.weight"])
    assert any("lora_B" in key and weight.any() for key, weight in final.items())
    assert result.eval_metrics == {"accuracy": 1.0, "macro_f1": 1.0}


def test_the_metrics_are_of_the_held_out_rows(bert: Path, tmp_path: Path) -> None:
    """Accuracy and macro-F1 are those of a plain loop over the rows with the kept weights."""
    model, record = injected(bert, tmp_path, base_settings=classifier(bert))
    result = train_here(model, record, tmp_path, training(load_best_model_at_end=False))
    held_out = prepared(record.lora.base, tmp_path).eval
    assert held_out is not None
    expected = [row.labels[0] for row in held_out.rows]
    guesses = [
        model.eval()(input_ids=torch.tensor([row.input_ids])).logits.argmax().item()
        for row in held_out.rows
    ]
    assert result.eval_metrics == {
        "accuracy": accuracy_score(expected, guesses),
        "macro_f1": f1_score(expected, guesses, average="macro", zero_division=0),
    }


class Killed(Exception):  # noqa: N818 - not an error of ours
    """What a training run dies of."""


def test_a_run_killed_at_any_step_ends_as_if_it_had_not_been(bert: Path, tmp_path: Path) -> None:
    """Killed at every step in turn, with dropout, a run ends with the same bits and metrics."""
    settings = training(max_steps=6, eval_steps=3, checkpoint_minutes=0, batch_tokens=24)
    dropout = LoraSettings(r=4, lora_dropout=0.3)
    model, record = injected(bert, tmp_path, dropout, classifier(bert))
    whole = train_here(model, record, tmp_path / "whole", settings)
    for step in range(1, whole.num_steps + 1):
        with pytest.raises(Killed):
            _killed_at(step, record, tmp_path / "cut", settings)
    resumed = train_here(_rebuilt(record), record, tmp_path / "cut", settings)
    assert resumed.weights.sha256 == whole.weights.sha256
    assert resumed.loss_curve == whole.loss_curve
    assert resumed.eval_metrics == whole.eval_metrics


def _rebuilt(record: InjectedRecord) -> "PreTrainedModel":
    model, _ = loaded(Path(record.lora.base.location), record.lora.base.settings)
    reinject(model, record)
    return model


def _killed_at(
    step: int, record: InjectedRecord, folder: Path, settings: TrainingSettings
) -> TrainedRecord:
    def on_progress(now: TrainingProgress) -> None:
        if now.step == step and not now.metrics:
            raise Killed

    return train_here(_rebuilt(record), record, folder, settings, on_progress)


def test_the_saved_adapter_is_plain_peft(bert: Path, tmp_path: Path) -> None:
    """Transformers and PEFT load it on their own base, with the same logits and label names."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    model, record = trained(bert, tmp_path, base_settings=classifier(bert))
    saved = save_here(model, record, tmp_path)
    names = dict(enumerate(LABELS))
    ids = torch.arange(24).reshape(2, 12)
    expected = model.eval()(input_ids=ids).logits

    ours = AutoModelForSequenceClassification.from_pretrained(bert, id2label=names)
    ours.load_adapter(str(saved.folder))
    theirs = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3)
    theirs = PeftModel.from_pretrained(theirs, str(saved.folder))
    for loaded_by in (ours, theirs):
        assert torch.allclose(loaded_by.eval()(input_ids=ids).logits, expected, atol=1e-6)
    card = (saved.folder / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert "AutoModelForSequenceClassification" in card
    assert f"labels = {list(LABELS)}" in card


@pytest.mark.parametrize("packing", ["4bit", "8bit"])
def test_a_packed_base_keeps_its_head_whole(bert: Path, tmp_path: Path, packing: str) -> None:
    """On a packed base the output layer stays in full, so that it trains."""
    _, record = trained(bert, tmp_path, base_settings=classifier(bert, quantization=packing))
    final = adapter_state.load_weights(record.weights.path)
    assert final["classifier.weight"].shape == (3, 64)
    assert final["classifier.weight"].dtype == torch.float32


def test_all_linear_leaves_out_the_head(tmp_path: Path) -> None:
    """Where base and head have layers of one name, only those of the base are adapted."""
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2
    )
    config.num_attention_heads = 4
    RobertaModel(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    skeleton = load_skeleton(find_base(classifier(tmp_path)))
    given = LoraSettings(target_modules="all-linear")
    selection = select(given, skeleton, CLASSIFYING)
    resolved = resolve_config(given, selection, skeleton, CLASSIFYING)
    assert resolved.modules_to_save == ("classifier",)
    expected = {"query", "key", "value", "intermediate.dense", "output.dense"}
    assert set(resolved.target_modules) == expected


def test_rows_that_are_classified_cannot_be_packed(bert: Path, tmp_path: Path) -> None:
    """Packed rows would not have one output each: asked for, they are refused."""
    model, record = injected(bert, tmp_path, base_settings=classifier(bert))
    with pytest.raises(UserError, match="can only be padded"):
        train_here(model, record, tmp_path, training(batching="packed"))


def test_long_texts_are_cut_and_counted(bert: Path, tmp_path: Path) -> None:
    """A text is cut to what the model was made for, whatever `max_length` allows."""
    from tasks.engine.preparation import prepare_data

    rows = [{"text": "x" * 500, "label": "animal"}, {"text": "y", "label": "money"}]
    settings = DataSettings(train=written(tmp_path / "t.jsonl", rows), eval_fraction=0)
    sets = read_examples(settings, 0, CLASSIFYING, LABELS)
    data = prepare_data(sets, settings, 0, find_base(classifier(bert)), tmp_path / "tokens")
    assert data.train.record.num_shortened_texts == 1
    assert data.train.record.longest_tokens == 64


def test_classes_are_needed_to_load_a_classifier(bert: Path) -> None:
    """Without labels, the message says what to set; labels of a language model are a mistake."""
    with pytest.raises(UserError, match=r"base_model\.labels is empty"):
        loaded(bert, classifier(bert, labels=()))
    with pytest.raises(ValueError, match="task is causal-lm"):
        classifier(bert, task="causal-lm")
