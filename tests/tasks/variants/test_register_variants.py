"""Which adapters of a set become versions in MLflow's registry."""

from pathlib import Path

import pytest

from tasks.config import Score, TrackingSettings
from tasks.errors import PassingError
from tasks.records import RunRecord, VariantResult
from tasks.tracking import VARIANT_TAG, Registry, ready_client, tracking_uri
from tasks.variants.register_variants import register_variants

pytestmark = pytest.mark.slow


def _run(folder: Path) -> RunRecord:
    uri = tracking_uri(TrackingSettings())
    return RunRecord(
        tracking_uri=uri, experiment="sets", run_name="set", flow_run_id="1", folder=folder
    )


def _result(run: RunRecord, name: str, score: float, **changes: object) -> VariantResult:
    client, experiment = ready_client(run.tracking_uri, run.experiment)
    model = client.create_logged_model(experiment, name="adapter")
    given: dict[str, object] = {"settings": {}, "value": None, "flow_run_id": name}
    given |= {"score": score, "adapter": "a"}
    uri = f"models:/{model.model_id}"
    return VariantResult.model_validate({**given, "name": name, "model_uri": uri, **changes})


def test_the_best_is_the_challenger(tmp_path: Path) -> None:
    """Of variants that compete, one becomes a version; registering again makes no second one."""
    run = _run(tmp_path)
    results = (_result(run, "a", 2.0), _result(run, "b", 1.0))
    for _ in range(2):
        found = register_variants.fn(results, "best-of", None, Score.EVAL_LOSS, run)
        assert found.versions == {"best-of": 1}
    (version,) = Registry(run.tracking_uri, "best-of").versions()
    assert (version.tags[VARIANT_TAG], version.aliases) == ("b", ("challenger",))


def test_each_tenant_has_a_model_of_its_own(tmp_path: Path) -> None:
    """Split by a column, every adapter that there is becomes the challenger of its own model."""
    run = _run(tmp_path)
    failed = _result(run, "c", 0.0, error="failed")
    results = (_result(run, "a", 2.0), _result(run, "b", 1.0), failed)
    found = register_variants.fn(results, "each-of", "tenant", Score.EVAL_LOSS, run)
    assert found.versions == {"each-of-a": 1, "each-of-b": 1}


def test_an_adapter_that_waits_is_not_passed_over(tmp_path: Path) -> None:
    """While MLflow does not have the adapter yet, the step is retried."""
    run = _run(tmp_path)
    waiting = _result(run, "a", 1.0, model_uri=None)
    with pytest.raises(PassingError, match="can't register the adapter of a"):
        register_variants.fn((waiting,), "waits", None, Score.EVAL_LOSS, run)
