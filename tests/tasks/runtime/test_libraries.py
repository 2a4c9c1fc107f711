"""The libraries are imported where they are used, the collector stays on, and passes over them."""

import gc
import json
import subprocess
import sys
import weakref

import pytest

from tasks.runtime.libraries import import_libraries


class Model:
    """Something that refers to itself, as models do."""

    def __init__(self) -> None:
        self.itself = self


def test_the_collector_passes_over_the_libraries_alone() -> None:
    """What is thrown away is collected as ever, though the libraries were asked for once more."""
    import_libraries()
    assert gc.get_freeze_count() > 100_000
    assert gc.isenabled()
    model = Model()
    thrown_away = weakref.ref(model)
    import_libraries()
    del model
    gc.collect()
    assert thrown_away() is None


MODULES = """
import json
import sys

def tell():
    print(json.dumps(sorted(sys.modules)))

from flows.cli.main import cli
cli.main(["--help"], standalone_mode=False)
print()
tell()
import flows.predict_batch, flows.retrain_adapter, flows.train_adapter, flows.train_variants
tell()
import tasks.engine.training.training
tell()
"""
HEAVY = {"torch", "transformers", "peft", "datasets", "accelerate", "mlflow", "matplotlib", "scipy"}


@pytest.mark.slow  # a new process, and its imports
def test_nothing_is_imported_before_it_is_used() -> None:
    """`--help` needs none of the libraries, the flows only Prefect, a training no compiler."""
    done = subprocess.run([sys.executable, "-c", MODULES], capture_output=True, check=True)
    of_help, of_flows, of_training = map(json.loads, done.stdout.splitlines()[-3:])
    assert not {*HEAVY, "prefect", "pydantic", "numpy"} & {*of_help}
    assert not HEAVY & {*of_flows}
    # PEFT imports it, and its decorators would have imported the other.
    assert "bitsandbytes" in of_training
    assert "torch._inductor.compile_fx" not in of_training
