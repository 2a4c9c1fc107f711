"""The code that is stored with an MLflow model is the code that the loaded model runs."""

import ast
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from tiny_models import tiny_adapter

from tasks.config import AdapterSettings
from tasks.inference.serving import bundle_adapters


@pytest.fixture
def stored(tiny_base: Path, tmp_path: Path) -> Path:
    """Bundle an adapter as a model."""
    bundle_adapters([_wanted(tiny_base, tmp_path)], tmp_path / "bundle", None)
    return tmp_path / "bundle"


def _wanted(tiny_base: Path, tmp_path: Path) -> AdapterSettings:
    """Write an adapter, and return what asks for it."""
    folder = tiny_adapter(tiny_base, tmp_path / "adapter")
    recorded = {"base_model": {"reference": str(tiny_base), "dtype": "float32"}}
    (folder / "manifest.json").write_text(json.dumps(recorded | {"template": "chat"}))
    return AdapterSettings(name="only", source=str(folder))


def imports(tree: ast.AST) -> set[str]:
    """Return the modules that some code imports, relative ones with their dots."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


def refusal(model: Any) -> str:  # noqa: ANN401 - MLflow's
    """Return what a model says to a row without a question."""
    import pandas as pd  # type: ignore[import-untyped]

    with pytest.raises(MlflowException) as error:
        model.predict(pd.DataFrame([{"prompt": ""}]))
    return str(error.value)


def test_models_of_two_versions_live_in_one_process(stored: Path) -> None:
    """Each answers by its own code, whichever was loaded last."""
    import mlflow.pyfunc

    newer = Path(shutil.copytree(stored, stored.with_name("newer")))
    rows = newer / "code" / "served_model" / "rows.py"
    rows.write_text(rows.read_text().replace("is empty", "has no text"))
    models = [mlflow.pyfunc.load_model(str(folder)) for folder in (stored, newer, stored)]
    said = [refusal(model) for model in models]
    assert said[0] == said[2] != said[1]
    assert ("is empty" in said[0], "has no text" in said[1]) == (True, True)


def test_a_model_runs_nothing_but_what_is_stored_with_it(stored: Path) -> None:
    """All of its modules are files of its folder, and all of these files are its modules."""
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(str(stored)).unwrap_python_model()
    own = type(model).__module__.partition(".")[0]
    modules = [one for name, one in sys.modules.items() if name.partition(".")[0] == own]
    files = {Path(str(one.__file__)) for one in modules if one.__file__}
    assert files == {*stored.glob("*.py"), *stored.glob("code/**/*.py")}
    assert {"served_model", "siblings"}.isdisjoint(sys.modules)


def test_a_model_that_lost_a_file_does_not_run_the_projects(stored: Path) -> None:
    """The project's may be of another version."""
    import mlflow.pyfunc

    (stored / "code" / "siblings.py").unlink()
    with pytest.raises(MlflowException, match="siblings"):
        mlflow.pyfunc.load_model(str(stored))


def test_bundling_leaves_no_code_behind(tiny_base: Path, tmp_path: Path) -> None:
    """MLflow runs the code once to check it: a process that bundles many adapters must not grow."""
    before = set(sys.modules)
    bundle_adapters([_wanted(tiny_base, tmp_path)], tmp_path / "bundle", None)
    assert not [name for name in sys.modules.keys() - before if name.startswith("code_model_")]


def test_a_model_that_is_loaded_while_another_is_written_keeps_its_code(
    stored: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another thread may do it: here, in the midst of writing."""
    import mlflow.pyfunc

    write, loaded = mlflow.pyfunc.save_model, []

    def load_and_write(*given: Any, **more: Any) -> None:  # noqa: ANN401
        loaded.append(mlflow.pyfunc.load_model(str(stored)).unwrap_python_model())
        write(*given, **more)

    monkeypatch.setattr(mlflow.pyfunc, "save_model", load_and_write)
    bundle_adapters([_wanted(tiny_base, tmp_path / "more")], tmp_path / "second", None)
    assert type(loaded[0]).__module__ in sys.modules


def test_stored_code_needs_no_project_and_no_name(stored: Path) -> None:
    """It imports nothing of this project, and its own modules before anything is called.

    Once an adapter is logged, the name of its package is gone.
    """
    files = [*stored.glob("*.py"), *stored.glob("code/**/*.py")]
    for tree in [ast.parse(file.read_text()) for file in files]:
        roots = {name.partition(".")[0] for name in imports(tree)}
        assert roots.isdisjoint({"tasks", "flows"})
        functions = [one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)]
        assert not [name for one in functions for name in imports(one) if name.startswith(".")]
