"""Scores of base and adapters on held-out rows: the same rows, the right model, exact losses."""

import hashlib
import json
from pathlib import Path

import pytest
from tiny_models import tiny_adapter

from tasks.config import BaseModelSettings, DataSettings, EvaluationSettings
from tasks.engine.adapter_set import AdapterSet
from tasks.engine.evaluation import evaluate, row_losses
from tasks.engine.held_out import HeldOut, open_held_out
from tasks.engine.rendering import Renderer
from tasks.engine.score_files import read_scores, write_scores
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
        EvaluationSettings.model_validate(given | settings), DataSettings(train="none.jsonl")
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
    rows = rows_of.tokenized(Renderer.of(one.tokenizer, one.template, rows_of.row_format))
    with adapters.using("one") as model:
        together = row_losses(model, rows, 0, 3)
        for row, (nats, num_tokens) in zip(rows, together, strict=True):
            with torch.no_grad():
                alone = model(
                    input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])
                ).loss
            assert nats / num_tokens == pytest.approx(float(alone), rel=1e-5)


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
    prompts, read = read_scores(written.path)
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
        rows.check(Renderer.of(one.tokenizer, one.template, rows.row_format), adapters.model.config)
