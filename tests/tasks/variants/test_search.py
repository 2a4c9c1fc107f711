"""The search proposes the same whether or not it is interrupted."""

from pathlib import Path
from typing import Any

import pytest

from tasks.config import TrainVariantsConfig
from tasks.records import VariantRecord
from tasks.variants.search import Search

_RANGES: dict[str, Any] = {
    "training.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
    "lora.r": {"low": 1, "high": 64},
    "lora.target_modules": ["auto", ["q_proj"], "all-linear"],
}


def _config(num_trials: int = 6, **search: Any) -> TrainVariantsConfig:  # noqa: ANN401
    return TrainVariantsConfig.model_validate(
        {
            "base_model": {"source": "org/base"},
            "data": {"train": "rows.jsonl"},
            "variants": {
                "search": {"ranges": _RANGES, "num_trials": num_trials, **search},
                "num_processes": 2,
            },
        }
    )


def _score(variant: VariantRecord) -> float:
    settings = variant.settings
    return float(abs(settings["lora.r"] - 20) + settings["training.learning_rate"])


def _all(search: Search) -> list[VariantRecord]:
    found = []
    while variants := search.next_round():
        for one in variants:
            search.tell(one, _score(one))
        found += variants
    return found


def test_an_interrupted_search_goes_the_same_way(tmp_path: Path) -> None:
    """Stopped in the middle of a round, it tries what an uninterrupted one tries."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = _all(Search(_config(), tmp_path / "a"))
    first = Search(_config(), tmp_path / "b")
    for one in first.next_round():
        first.tell(one, _score(one))
    begun = first.next_round()
    first.tell(begun[0], _score(begun[0]))

    second = Search(_config(), tmp_path / "b")
    again = second.begun()
    for one in again:
        second.tell(one, _score(one))
    assert again == whole[:4]
    assert [*again, *_all(second)] == whole


@pytest.mark.slow
def test_scores_guide_the_search(tmp_path: Path) -> None:
    """After its random start the search stays near the best rank, which is 20."""
    found = _all(Search(_config(40), tmp_path))
    distances = [abs(one.settings["lora.r"] - 20) for one in found]
    assert sum(distances[25:]) / len(distances[25:]) < sum(distances[:10]) / 10


def test_the_same_settings_are_tried_once(tmp_path: Path) -> None:
    """Proposed again, they are not another variant; the search ends after its trials."""
    config = _config(4, ranges={"lora.r": [4, 8]})
    found: list[VariantRecord] = []
    search = Search(config, tmp_path)
    while variants := search.next_round():
        for one in variants:
            search.tell(one, float(one.settings["lora.r"]))
        found += variants
    assert sorted(one.settings["lora.r"] for one in found) == [4, 8]


def test_a_trial_that_was_half_drawn_is_replaced(tmp_path: Path) -> None:
    """Killed while it drew settings, the search passes over the trial and tries one more."""
    search = Search(_config(2), tmp_path)
    half = search._study.ask()
    half.suggest_int("lora.r", 1, 64)
    again = Search(_config(2), tmp_path)
    assert again.begun() == []
    assert [one.name for one in _all(again)] == ["trial-1", "trial-2"]


def test_a_trial_without_a_score_is_tried_again(tmp_path: Path) -> None:
    """A variant that failed is one that a resumed search begins with."""
    search = Search(_config(2), tmp_path)
    failed, _ = search.next_round()
    search.tell(failed, None)
    assert failed in Search(_config(2), tmp_path).begun()
