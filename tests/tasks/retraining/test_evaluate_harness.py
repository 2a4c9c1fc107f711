"""A model's scores on the harness's tasks are kept as soon as it has them."""

from pathlib import Path

import pytest
from harness_tasks import harness_settings, own_task
from tiny_models import tiny_adapter

from tasks.config import BaseModelSettings
from tasks.engine.adapters import AdapterSet
from tasks.engine.scoring import open_tasks
from tasks.records import BASE, CHALLENGER, HarnessModel
from tasks.retraining.evaluate_harness import _kept

pytest.importorskip("lm_eval")
ROWS = [{"question": f"The {word} is", "answer": f" {word}"} for word in ("card", "order", "fox")]


def test_after_a_kill_only_the_other_models_are_scored(tiny_base: Path, tmp_path: Path) -> None:
    """What one attempt had scored the next one takes from its file, unless it is of other tasks.

    A file that a kill has left incomplete, or that anybody has changed, is written anew.
    """
    base = BaseModelSettings.model_validate({"source": str(tiny_base), "dtype": "float32"})
    adapters = AdapterSet.on(base)
    adapters.load(tiny_adapter(tiny_base, tmp_path / "adapter"), CHALLENGER)
    place = own_task(tmp_path / "tasks", "words", ROWS)
    opened = open_tasks(harness_settings(place, "words"))
    kept = tmp_path / "kept"
    first = {name: _kept(adapters, name, opened, kept) for name in (BASE, CHALLENGER)}
    assert first[BASE].scores != first[CHALLENGER].scores
    marked = first[BASE].model_copy(update={"seconds": -1.0})
    (kept / "base.json").write_text(marked.model_dump_json())
    (kept / "challenger.json").write_text('{"name": "challen')
    assert _kept(adapters, BASE, opened, kept) == marked
    assert _kept(adapters, CHALLENGER, opened, kept).scores == first[CHALLENGER].scores
    fewer = open_tasks(harness_settings(place, "words", limit=1))
    again = _kept(adapters, BASE, fewer, kept)
    assert again.tasks[0].num_rows == 1
    written = (kept / "base.json").read_bytes()
    assert HarnessModel.model_validate_json(written) == again


def test_scores_are_of_the_rows_wherever_these_are(tmp_path: Path) -> None:
    """Rows outside the folder of tasks count, too: models are compared on the same ones only."""
    places = [own_task(tmp_path / str(count), "words", ROWS[:count]) for count in (2, 3, 2)]
    two, three, again = (
        open_tasks(harness_settings(place, "words")).rows_sha256() for place in places
    )
    assert two == again != three
