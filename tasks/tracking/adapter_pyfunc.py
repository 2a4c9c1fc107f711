"""What MLflow executes for each model that is logged or loaded: it gives MLflow the model's object.

This file is stored with each adapter, and `served_model` in the folder `code` beside it. MLflow
executes it under a name of each model's own. Here it becomes a package of that name, so that each
model of a process has its own modules: they may be of different versions.
"""

import importlib
from pathlib import Path

import mlflow.models

_stored = Path(__file__).with_name("code")
# Of a model that is being logged, the files are where they are in the project.
_project = [_stored.parent, _stored.parents[1] / "engine" / "adapters"]
__path__ = [str(one) for one in ([_stored] if _stored.is_dir() else _project)]
_served = importlib.import_module(f"{__name__}.served_model.model")
mlflow.models.set_model(_served.AdapterModel())
