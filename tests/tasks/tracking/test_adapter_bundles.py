"""Several adapters in one MLflow model: each answers its own requests, and batches are shared."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from plain_adapters import lora_folder
from served_answers import PROMPTS, PROMPTS_AS_CHATS, greedy_answers
from tiny_models import tiny_adapter, tiny_llama
from transformers import AutoTokenizer

from tasks.config import AdapterSettings, BaseModelSettings
from tasks.engine.adapters.adapter_set import AdapterSet
from tasks.engine.data.rendering.prompts import Prompt
from tasks.engine.objectives.generation import answer
from tasks.inference.serving import bundle_adapters


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a base model."""
    return tiny_llama(tmp_path_factory.mktemp("base"))


def bundled(base: Path, folders: dict[str, Path], bundle: Path) -> Any:  # noqa: ANN401
    """Load several adapters, which say what they were made for, as one model."""
    import mlflow.pyfunc

    for folder in folders.values():
        recorded = {"reference": str(base), "dtype": "float32"}
        (folder / "manifest.json").write_text(json.dumps({"base_model": recorded}))
    wanted = [AdapterSettings(name=name, source=str(path)) for name, path in folders.items()]
    bundle_adapters(wanted, bundle, None)
    return mlflow.pyfunc.load_model(str(bundle))


def test_a_token_without_an_embedding_is_refused(tmp_path: Path) -> None:
    """A request with it is reported, and others are padded with a token that the base has."""
    import pandas as pd  # type: ignore[import-untyped]

    base = tiny_llama(tmp_path / "base", layers=1, chat_template=False)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.add_special_tokens({"pad_token": "<filler>"})
    tokenizer.save_pretrained(base)
    folders = {"a": tiny_adapter(base, tmp_path / "a")}
    model = bundled(base, folders, tmp_path / "bundle")

    assert len(model.predict(pd.DataFrame({"prompt": PROMPTS}))) == len(PROMPTS)
    with pytest.raises(MlflowException, match=r"'<extra>' .* embeddings for tokens 0 to "):
        model.predict(pd.DataFrame({"prompt": ["The <extra>"]}))


def test_each_thread_gets_its_own_adapter_s_answers(base: Path, tmp_path: Path) -> None:
    """Of several adapters in one model each answers its own requests, however they come."""
    import pandas as pd

    names = ("first", "second")
    folders = {name: tiny_adapter(base, tmp_path / name, seed=n) for n, name in enumerate(names)}
    model = bundled(base, folders, tmp_path / "bundle")

    def ask(name: str) -> list[str]:
        params = {"max_new_tokens": 8, "adapter": name}
        return list(model.predict(pd.DataFrame({"prompt": PROMPTS}), params=params))

    chats = PROMPTS_AS_CHATS
    expected = {name: greedy_answers(base, path, chats) for name, path in folders.items()}
    assert expected["first"] != expected["second"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, names * 4))
    assert answers == [expected[name] for name in names * 4]
    assert (
        list(model.predict(pd.DataFrame({"prompt": PROMPTS}), params={"max_new_tokens": 8}))
        == (expected["first"])
    )


def test_answers_are_those_of_the_set_whatever_the_base_asks_for(
    base: Path, tmp_path: Path
) -> None:
    """Beams and penalties of the base change nothing; its own end token ends an adapter's.

    So answers are the same as `predict` gives, and adapters with other ends share no batch.
    """
    own = Path(shutil.copytree(base, tmp_path / "base"))
    settings = json.loads((own / "generation_config.json").read_text())
    settings |= {"num_beams": 3, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2}
    (own / "generation_config.json").write_text(json.dumps(settings))
    folders = {name: tiny_adapter(own, tmp_path / name, seed=n) for n, name in enumerate("ab")}
    asked = [{"prompt": prompt} for prompt in PROMPTS]
    first = greedy_answers(base, folders["b"], PROMPTS_AS_CHATS)
    tokenizer = AutoTokenizer.from_pretrained(base)
    said = tokenizer(first[0])["input_ids"]
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(max(said, key=said.count))
    tokenizer.save_pretrained(folders["b"])

    model = bundled(own, folders, tmp_path / "bundle").unwrap_python_model()
    jobs = [
        model._job(row, name, model._decoding(adapter=name, max_new_tokens=8)[1])
        for row in asked
        for name in folders
    ]
    model.queue.answer_all(jobs)
    adapters = AdapterSet.on(
        BaseModelSettings.model_validate({"source": str(own), "dtype": "float32"})
    )
    for name, folder in folders.items():
        adapters.load(folder, name)
        expected = answer(
            adapters.model,
            adapters.adapters[name].tokenizer,
            [Prompt(text, adds_special_tokens=False) for text in PROMPTS_AS_CHATS],
            max_new_tokens=8,
            batch_size=1,
        )
        assert [job.answer for job in jobs if job.adapter == name] == expected
    assert jobs[1].answer != first[0]


@pytest.mark.parametrize("config", [{"batch_size": 1}, {"dtype": "float32"}])
def test_an_answer_can_be_had_whatever_it_is_computed_with(
    base: Path, tmp_path: Path, config: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that the server loads in bfloat16 answers rows asked at once as each one alone."""
    import pandas as pd
    from mlflow.pyfunc.scoring_server import load_model_with_mlflow_config

    bundled(base, {"only": tiny_adapter(base, tmp_path / "only")}, tmp_path / "bundle")
    monkeypatch.setenv("SERVING_MODEL_CONFIG", json.dumps({"dtype": "bfloat16"} | config))
    model = load_model_with_mlflow_config(str(tmp_path / "bundle"))
    asked = pd.DataFrame({"prompt": [f"What is {'very ' * (n % 5)}red {n}?" for n in range(24)]})
    params = {"max_new_tokens": 24}
    alone = [model.predict(asked[n : n + 1], params=params)[0] for n in range(24)]
    assert model.predict(asked, params=params) == alone


def test_of_a_request_that_failed_nothing_waits(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its other rows are not computed before the next request's."""
    folders = {"only": tiny_adapter(base, tmp_path / "only")}
    model = bundled(base, folders, tmp_path / "bundle").unwrap_python_model()
    adapter, decoding = model._decoding(max_new_tokens=8)
    jobs = [model._job({"prompt": PROMPTS[0]}, adapter, decoding) for _ in range(40)]
    with monkeypatch.context() as patch:
        patch.setattr(model.model, "generate", _run_out)
        with pytest.raises(MemoryError):
            model.queue.answer_all(jobs)
    assert not model.queue._waiting


def _run_out(**_: object) -> None:
    raise MemoryError


MIXED: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["q_proj", "up_proj"]},
    "other layers and rank": {"target_modules": ["v_proj", "embed_tokens"], "r": 5},
    "DoRA": {"use_dora": True},
    "whole head": {"modules_to_save": ["lm_head"]},
    "whole norm": {"modules_to_save": ["norm"]},
}


def test_rows_that_wait_together_are_computed_together(base: Path, tmp_path: Path) -> None:
    """A batch has rows of several adapters, each row with its own; DoRA and full modules apart."""
    folders = {
        name: lora_folder(base, tmp_path / name, seed=n, **given)
        for n, (name, given) in enumerate(MIXED.items())
    }
    named = {f"a{n}": path for n, path in enumerate(folders.values())}
    model = bundled(base, named, tmp_path / "bundle").unwrap_python_model()
    jobs = []
    for prompt in PROMPTS:
        for name in named:
            adapter, decoding = model._decoding(adapter=name, max_new_tokens=8)
            jobs.append(model._job({"prompt": prompt}, adapter, decoding))
    queue, batches = model.queue, []
    queue._waiting.extend(jobs)
    while queue._waiting:
        batches.append(queue._take())
        queue._answer_batch(batches[-1])
    expected = {name: greedy_answers(base, path, PROMPTS_AS_CHATS) for name, path in named.items()}
    assert len({tuple(answers) for answers in expected.values()}) == len(named)
    for name, answers in expected.items():
        assert [job.answer for job in jobs if job.adapter == name] == answers
    together, *apart = [{job.adapter for job in batch} for batch in batches]
    assert together == {"a0", "a1"}
    assert sorted(map(sorted, apart)) == [["a2"], ["a3"], ["a4"]]
