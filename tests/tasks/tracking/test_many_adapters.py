"""Many adapters in one MLflow model: each is loaded as alone, and costs what the one before did."""

import json
from pathlib import Path
from typing import Any

import pytest
from module_visits import counted_visits
from served_answers import PROMPTS, as_chat, greedy_answers
from tiny_models import tiny_adapter

from tasks.config import AdapterSettings
from tasks.inference.serving import bundle_adapters


@pytest.fixture(scope="module")
def adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[AdapterSettings]:
    """Save seven adapters: all have one configuration, but for the second."""
    root = tmp_path_factory.mktemp("adapters")
    base = {"base_model": {"reference": str(tiny_base), "dtype": "float32"}}
    found = []
    for seed in range(7):
        folder = tiny_adapter(tiny_base, root / f"a{seed}", seed=seed, r=3 if seed == 1 else 4)
        (folder / "manifest.json").write_text(json.dumps(base | {"template": "chat"}))
        found.append(AdapterSettings(name=f"a{seed}", source=str(folder)))
    return found


def loaded(wanted: list[AdapterSettings], folder: Path) -> Any:  # noqa: ANN401 - MLflow's
    """Bundle adapters, and load them as a server does."""
    import mlflow.pyfunc

    bundle_adapters(wanted, folder, None)
    return mlflow.pyfunc.load_model(str(folder))


def test_each_adapter_answers_as_it_does_alone(
    adapters: list[AdapterSettings], tiny_base: Path, tmp_path: Path
) -> None:
    """However an adapter came beside others of its configuration, and others, it is complete."""
    import pandas as pd  # type: ignore[import-untyped]

    model = loaded(adapters, tmp_path / "bundle")
    table = pd.DataFrame([{"prompt": prompt} for prompt in PROMPTS])
    chats = [as_chat(prompt) for prompt in PROMPTS]
    said = []
    for one in adapters:
        said.append(model.predict(table, params={"adapter": one.name, "max_new_tokens": 8}))
        assert said[-1] == greedy_answers(tiny_base, Path(one.source), chats)
    assert len({tuple(answers) for answers in said}) == len(adapters)


def test_one_more_adapter_is_no_more_work(
    adapters: list[AdapterSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A further adapter is added without a look at those that are there."""
    import mlflow.pyfunc

    counts = []
    for number in (3, 5, 7):
        bundle_adapters(adapters[:number], tmp_path / str(number), None)
        visits = counted_visits(monkeypatch)
        mlflow.pyfunc.load_model(str(tmp_path / str(number)))
        counts.append(visits())
        monkeypatch.undo()
    assert counts[2] - counts[1] == counts[1] - counts[0]


def test_adapters_share_a_tokenizer(adapters: list[AdapterSettings], tmp_path: Path) -> None:
    """A tokenizer, which takes longer to load than an adapter, is loaded once for all of them."""
    model = loaded(adapters[:3], tmp_path / "bundle").unwrap_python_model()
    assert len(set(map(id, model.tokenizers.values()))) == 1
