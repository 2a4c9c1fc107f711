"""Scores of lm-evaluation-harness on the model in memory: right ones, and no other trace."""

import logging
import math
import os
import random
from pathlib import Path

import pytest
from harness_tasks import harness_settings, own_task
from tiny_models import tiny_adapter

from tasks.config import BaseModelSettings, Task
from tasks.engine.adapters.adapter_set import AdapterSet
from tasks.engine.data.tokens.tokenization import IGNORED, TokenizedRow
from tasks.engine.objectives.registry import objective_of
from tasks.engine.scoring.evaluation import row_losses
from tasks.engine.scoring.harness import score_on_harness
from tasks.engine.scoring.harness_tasks import open_tasks

pytest.importorskip("lm_eval")

WORDS = ("card", "order", "transfer", "France", "fox", "dog")
ROWS = [
    {"question": f"The {word} is", "answer": f" {word}", "choices": [f" {word}", " lazy"]}
    for word in WORDS
]
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": 0,
    "metric_list": [{"metric": "acc"}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a task of one answer a row, and one of two choices."""
    place = own_task(tmp_path_factory.mktemp("tasks"), "words", ROWS)
    return own_task(place, "choices", ROWS, **CHOICE)


@pytest.fixture(scope="module")
def adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> AdapterSet:
    """Load two different adapters on a base."""
    place = tmp_path_factory.mktemp("adapters")
    base = BaseModelSettings.model_validate({"source": str(tiny_base), "dtype": "float32"})
    loaded = AdapterSet.on(base)
    loaded.load(tiny_adapter(tiny_base, place / "one", seed=1), "one")
    loaded.load(tiny_adapter(tiny_base, place / "two", seed=2), "two")
    return loaded


def scored(adapters: AdapterSet, name: str, folder: Path, **settings: object) -> dict[str, float]:
    """Return a model's scores on both tasks."""
    opened = open_tasks(harness_settings(folder, "words", "choices", **settings))
    found = score_on_harness(adapters, name, "one", opened, "")
    return {one.name: one.value for one in found.scores}


def losses(adapters: AdapterSet, name: str, pairs: list[tuple[str, str]]) -> list[float]:
    """Return our own negative log-likelihood of each continuation."""
    encode = adapters.tokenizer.encode
    rows = []
    for question, answer in pairs:
        prompt, ids = encode(question), encode(question + answer)
        rows.append(TokenizedRow(ids, [IGNORED] * len(prompt) + ids[len(prompt) :]))
    with adapters.using(None if name == "base" else name) as model:
        found = row_losses(objective_of(Task.CAUSAL_LM), model, rows, 0, 4)
    return [nll for nll, _ in found]


@pytest.mark.parametrize("name", ["base", "one"])
def test_the_scores_are_those_of_our_own_losses(
    name: str, adapters: AdapterSet, folder: Path
) -> None:
    """Perplexity and accuracy follow from the losses that rows have with our own code."""
    found = scored(adapters, name, folder)
    right = losses(adapters, name, [(f"The {w} is", f" {w}") for w in WORDS])
    wrong = losses(adapters, name, [(f"The {w} is", " lazy") for w in WORDS])
    assert math.log(found["words/perplexity"]) == pytest.approx(sum(right) / len(right), rel=1e-4)
    chosen = [a < b for a, b in zip(right, wrong, strict=True)]
    assert found["choices/acc"] == pytest.approx(sum(chosen) / len(chosen))


def test_each_model_has_its_own_scores(adapters: AdapterSet, folder: Path) -> None:
    """Base and adapters differ, and each is scored the same again, whichever came before."""
    first = {name: scored(adapters, name, folder) for name in ("base", "one", "two")}
    assert len({one["words/perplexity"] for one in first.values()}) == len(first)
    again = {name: scored(adapters, name, folder) for name in ("two", "base", "one")}
    assert again == first


def test_it_leaves_no_trace_in_the_process(
    adapters: AdapterSet,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Random states, variables, tokenizer and modes are as before, and nothing is printed."""
    import numpy as np
    import torch

    def state() -> list[object]:
        model, tokenizer = adapters.model, adapters.adapters["one"].tokenizer
        return [
            random.getstate(),
            str(np.random.get_state()),  # noqa: NPY002 - the one that it seeds
            torch.get_rng_state().tolist(),
            dict(os.environ),
            (tokenizer.pad_token, tokenizer.padding_side),
            [module.training for module in model.modules()],
            "tie_weights" in vars(model),
            logging.getLogger("lm_eval").handlers,
        ]

    before = state()
    scored(adapters, "one", folder)
    assert state() == before
    assert not caplog.messages
    assert capfd.readouterr() == ("", "")
