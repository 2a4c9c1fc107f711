"""Scores of base and adapters on held-out rows: the same rows, the right model, exact losses."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from engine_steps import LABELS
from tiny_models import tiny_adapter, tiny_bert, tiny_t5

from tasks.config import (
    BaseModelSettings,
    DataSettings,
    EvaluationSettings,
    LossOn,
    Task,
    Template,
)
from tasks.engine.adapters.adapter_set import AdapterSet
from tasks.engine.base.base_models import load_base
from tasks.engine.base.sources import find_base
from tasks.engine.batching.batches import as_items
from tasks.engine.data.rendering.rendering import Renderer
from tasks.engine.data.tokens.tokenization import IGNORED, TokenizedRow
from tasks.engine.objectives.classes import ClassifiedRow
from tasks.engine.objectives.registry import objective_of
from tasks.engine.objectives.seq2seq import PairRow
from tasks.engine.scoring.evaluation import PADDED, evaluate, row_losses
from tasks.engine.scoring.held_out import HeldOut, open_held_out
from tasks.engine.scoring.score_files import read_scores, write_scores
from tasks.errors import UserError

WORDS = ("card", "order", "transfer", "France", "fox")


def held_out(folder: Path, **settings: object) -> HeldOut:
    """Write and open rows of unlike length."""
    file = folder / "rows.jsonl"
    rows = [
        {"prompt": f"The {w} " * (i + 1), "completion": w * (5 - i)} for i, w in enumerate(WORDS)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {
        "rows": str(file),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "max_new_tokens": 6,
        "batch_size": 2,
    }
    return open_held_out(
        EvaluationSettings.model_validate(given | settings),
        DataSettings(train="none.jsonl"),
        Task.CAUSAL_LM,
    )


@pytest.fixture(scope="module")
def adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> AdapterSet:
    """Load two different adapters on a base, and one of them a second time."""
    folder = tmp_path_factory.mktemp("adapters")
    base = BaseModelSettings.model_validate({"source": str(tiny_base), "dtype": "float32"})
    loaded = AdapterSet.on(base)
    loaded.load(tiny_adapter(tiny_base, folder / "one", seed=1), "one")
    loaded.load(folder / "one", "twin")
    loaded.load(tiny_adapter(tiny_base, folder / "two", seed=2), "two")
    return loaded


def test_each_row_has_its_own_loss(adapters: AdapterSet, tmp_path: Path) -> None:
    """In batches of any size, a row's loss is the one that transformers gives for it alone."""
    import torch

    rows_of = held_out(tmp_path)
    one = adapters.adapters["one"]
    renderer = Renderer.of(one.tokenizer, one.template, rows_of.row_format)
    rows = rows_of.tokenized(renderer, adapters.base)
    with adapters.using("one") as model:
        together = row_losses(rows_of.task, model, rows, 0, 3)
        for row, (nll, num_tokens) in zip(rows, together, strict=True):
            with torch.no_grad():
                alone = model(
                    input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])
                ).loss
            assert nll / num_tokens == pytest.approx(float(alone), rel=1e-5)


@pytest.mark.parametrize("loss_on", LossOn)
@pytest.mark.parametrize("template", [Template.CHAT, Template.PLAIN])
def test_the_loss_is_that_of_the_last_answer(
    template: Template, loss_on: LossOn, adapters: AdapterSet, tmp_path: Path
) -> None:
    """Neither prompt nor earlier answers of a talk count, whatever the training learns of them."""
    file = tmp_path / "talks.jsonl"
    turns = [("user", "card"), ("assistant", "order"), ("user", "fox"), ("assistant", "France")]
    talk = [{"role": role, "content": content} for role, content in turns]
    file.write_text(json.dumps({"messages": talk}) + "\n")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    rows_of = open_held_out(
        EvaluationSettings(rows=str(file), sha256=digest),
        DataSettings(train="none.jsonl", loss_on=loss_on),
        Task.CAUSAL_LM,
    )
    tokenizer = adapters.tokenizer
    renderer = Renderer.of(tokenizer, template, rows_of.row_format)
    (row,) = rows_of.tokenized(renderer, adapters.base)
    labelled = str(tokenizer.decode([label for label in row.labels if label != IGNORED]))
    assert labelled.removesuffix(str(tokenizer.eos_token)).strip() == "France"
    short = replace(rows_of, data=DataSettings(train="none.jsonl", max_length=8))
    with pytest.raises(UserError, match="the answer lies entirely beyond"):
        short.tokenized(renderer, adapters.base)


IDS = [[5, 6, 7], [8], [9, 10, 11, 12], [13, 14]]
OTHERS: dict[Task, tuple[Callable[[Path], Path], Sequence[TokenizedRow]]] = {
    Task.SEQUENCE_CLASSIFICATION: (
        tiny_bert,
        [ClassifiedRow(ids, [len(ids) % len(LABELS)]) for ids in IDS],
    ),
    Task.SEQ2SEQ: (tiny_t5, [PairRow(ids, [*ids[::-1], 2]) for ids in IDS]),
}


@pytest.mark.parametrize("task", OTHERS)
def test_other_tasks_have_a_loss_a_row_too(task: Task, tmp_path: Path) -> None:
    """A row's cross entropy is the one it has in a training step of its own."""
    import torch

    make, rows = OTHERS[task]
    labels = LABELS if task is Task.SEQUENCE_CLASSIFICATION else ()
    given = {"source": str(make(tmp_path / "base")), "task": task, "labels": labels}
    model = load_base(find_base(BaseModelSettings.model_validate({**given, "dtype": "float32"})))
    work = objective_of(task)
    together = row_losses(work, model, rows, 0, 3)
    for row, (nll, num_labels) in zip(rows, together, strict=True):
        (micro_batch,) = work.make_batches(PADDED, 0)(as_items([row]))["micro_batches"]
        with torch.no_grad():
            alone, _ = work.loss(model, micro_batch, PADDED)
        assert nll == pytest.approx(float(alone), rel=1e-5)
        assert num_labels == len(row.labels)


def test_models_are_told_apart_and_twins_are_not(adapters: AdapterSet, tmp_path: Path) -> None:
    """Switching gives each model its own scores, and two copies of one adapter equal ones."""
    rows = held_out(tmp_path)
    found = {
        name: evaluate(adapters, name, "one", rows).scores for name in (None, "one", "two", "twin")
    }
    losses = {name: one.of("loss") for name, one in found.items()}
    assert found["one"].rows == found["twin"].rows
    assert len({losses[None], losses["one"], losses["two"]}) == 3
    again = evaluate(adapters, None, "one", rows)
    assert again.scores.rows == found[None].rows
    assert again.seconds_answering > 0


def test_scores_go_to_a_file_and_back(adapters: AdapterSet, tmp_path: Path) -> None:
    """The file has every row's answers and scores, unchanged."""
    rows = held_out(tmp_path)
    scores = {"base": evaluate(adapters, None, "one", rows).scores}
    written = write_scores(rows, scores, tmp_path / "scores" / "rows.jsonl")
    prompts, read = read_scores(written.path, rows.kind)
    assert read["base"].rows == scores["base"].rows
    assert (prompts[0], read["base"].expected) == ("The card ", rows.expected)


def test_rows_that_changed_are_refused(tmp_path: Path) -> None:
    """A file with another sha256 than configured is not compared on; the message has both."""
    with pytest.raises(UserError, match=f"has the sha256 .* evaluation.sha256 is {'0' * 64}"):
        held_out(tmp_path, sha256="0" * 64)


def test_a_prompt_too_long_for_the_model_is_told_before(
    adapters: AdapterSet, tmp_path: Path
) -> None:
    """The row is named that leaves no room for its answer."""
    rows = held_out(tmp_path, max_new_tokens=1020)
    one = adapters.adapters["one"]
    with pytest.raises(UserError, match=r"rows\.jsonl, row 1: the prompt has"):
        rows.check(
            Renderer.of(one.tokenizer, one.template, rows.row_format),
            adapters.base,
        )
