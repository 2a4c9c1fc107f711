"""Retrainings that cannot work: refused before anything is trained."""

from pathlib import Path

import pytest
from command_line_runs import run_in_process
from retraining_runs import aliases, retrained, retraining, rows_of

from tasks.errors import UserError
from tasks.tracking import Registry, ready_client, tracking_uri

pytestmark = pytest.mark.usefixtures("prefect_server")


def mistakes(folder: Path) -> dict[str, tuple[dict[str, dict[str, object]], str]]:
    """Return what cannot work, with the message that refuses it."""
    leaking = rows_of(folder / "leaking.jsonl", range(90, 104))
    return {
        "leakage": ({"data": {"train": str(leaking)}}, "4 of the 12 rows .* 4 of them verbatim"),
        "too few": ({"decision": {"min_rows": 13}}, "has 12 rows, and decision.min_rows is 13"),
        "metric": ({"decision": {"metric": "macro_f1"}}, "there are loss, perplexity, exact"),
        "other rows": ({"evaluation": {"sha256": "0" * 64}}, "has the sha256"),
        "broken": (
            {"evaluation": {"metrics": {"mine": "json:dumps"}}},
            r"mine raised TypeError",
        ),
    }


@pytest.mark.parametrize("case", ["leakage", "too few", "metric", "other rows", "broken"])
def test_a_mistake_ends_before_anything_is_trained(
    case: str, tiny_base: Path, tmp_path: Path
) -> None:
    """What makes a comparison worthless is said at once, and no version and no run are made."""
    sections, message = mistakes(tmp_path)[case]
    config = retraining(tiny_base, tmp_path, f"mistake-{case.replace(' ', '-')}", **sections)
    with pytest.raises(UserError, match=message):
        retrained(config)
    assert aliases(config) == {}


def test_a_champion_that_is_lost_is_told_before_anything_is_trained(
    tiny_base: Path, tmp_path: Path
) -> None:
    """A version without files can't be compared with, and that is known before the training."""
    config = retraining(tiny_base, tmp_path, "lost-champion")
    store = tracking_uri(config.tracking)
    client, experiment = ready_client(store, "lost")
    model = client.create_logged_model(experiment, name="adapter")
    registry = Registry(store, "lost-champion")
    registry.register(f"models:/{model.model_id}", None, {})
    registry.promote(1, None)
    with pytest.raises(UserError, match=r"models:/lost-champion/1 can't be compared with: "):
        retrained(config)
    assert aliases(config) == {"champion": 1}
    assert len(registry.versions()) == 1


@pytest.mark.slow
def test_leakage_that_is_allowed_is_reported(tiny_base: Path, tmp_path: Path) -> None:
    """With `report` the retraining goes on, and its record has the rows' numbers."""
    leaking, _ = mistakes(tmp_path)["leakage"]
    allowed: dict[str, dict[str, object]] = {**leaking, "evaluation": {"on_leakage": "report"}}
    record = retrained(retraining(tiny_base, tmp_path, "leaking", **allowed))
    assert record.checked.leaked_rows == (1, 2, 3, 4)


def test_history_of_an_unknown_name_is_a_mistake(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name without versions is one line and exit status 2."""
    status, out, err = run_in_process(capsys, monkeypatch, "history", "nobody")
    assert (status, out) == (2, "")
    assert "no registered model 'nobody'" in err
