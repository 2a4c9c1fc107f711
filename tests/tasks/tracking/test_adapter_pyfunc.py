"""The adapter as an MLflow model: what is stored, and what answers when it is loaded."""

import gc
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow_runs import client_of, logged
from served_answers import PROMPTS, as_chat, greedy_answers
from tiny_models import tiny_adapter, tiny_llama

from tasks.config import BaseModelSettings, Dtype, TrackingSettings
from tasks.engine.base.sources import find_base
from tasks.records import BaseModelRecord, FileRecord, SavedRecord
from tasks.tracking import Tracker, open_run
from tasks.tracking.adapter_model import CODE, CODE_BESIDE
from tasks.tracking.served_model.jobs import Decoding
from tasks.tracking.served_model.model import AdapterModel

ANSWER_IN_A_NEW_PROCESS = """
import json, sys
sys.modules["tasks"] = sys.modules["flows"] = None  # neither can be imported
import mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
rows = json.loads(sys.argv[2])
print(json.dumps(model.predict(pandas.DataFrame(rows), params={"max_new_tokens": 8})))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a base model."""
    return tiny_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def saved(base: Path, tmp_path_factory: pytest.TempPathFactory) -> SavedRecord:
    """Save an adapter for it, with a record as step 5 gives it."""
    folder = tiny_adapter(base, tmp_path_factory.mktemp("adapter"))
    (folder / "manifest.json").write_text("{}")
    weights = FileRecord.of(folder / "adapter_model.safetensors")
    return SavedRecord(
        template="chat",
        base=BaseModelRecord(
            **dict(find_base(BaseModelSettings(source=str(base), dtype=Dtype.FLOAT32))),
            architecture="LlamaForCausalLM",
            num_parameters=0,
            num_bytes=0,
        ),
        adapter_name="tickets.v1",
        folder=folder,
        weights=weights,
        config=FileRecord.of(folder / "adapter_config.json"),
        manifest=FileRecord.of(folder / "manifest.json"),
        num_adapter_parameters=0,
        adapter_bytes=weights.size_bytes,
        header_bytes=0,
        round_trip_logit_difference=0.0,
        hub_url=None,
    )


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """Open a run in a new store."""
    store = tmp_path_factory.mktemp("store")
    settings = TrackingSettings(uri=f"sqlite:///{store}/mlflow.db")
    return Tracker(open_run(settings, run_name="r", flow_run_id="f", folder=store, tags={}))


@pytest.fixture(scope="module")
def uri(tracker: Tracker, saved: SavedRecord) -> str:
    """Log the adapter."""
    uri = tracker.log_adapter(saved)
    assert uri
    return uri


def model_folder(tracker: Tracker, uri: str) -> Path:
    """Return the folder of a logged model's files."""
    location = (
        client_of(tracker.run).get_logged_model(uri.removeprefix("models:/")).artifact_location
    )
    return Path(location.removeprefix("file://"))


class Loaded:
    """A logged model as a user loads it, with another base if one is given."""

    def __init__(self, tracker: Tracker, uri: str, base: Path | None = None, **more: str) -> None:
        import mlflow.pyfunc

        config = ({"base_model": str(base)} if base else {}) | more
        folder = str(model_folder(tracker, uri))
        self.model = mlflow.pyfunc.load_model(folder, model_config=config or None)

    def answers(self, rows: list[dict[str, object]], max_new_tokens: int = 8) -> list[str]:
        """Answer a table's rows."""
        import pandas as pd  # type: ignore[import-untyped]

        params = {"max_new_tokens": max_new_tokens}
        return list(self.model.predict(pd.DataFrame(rows), params=params))


def test_logging_keeps_no_code(tracker: Tracker, saved: SavedRecord) -> None:
    """A process that logs one adapter after the other keeps the code of one model at most."""

    def num_kept(name: str) -> int:
        assert tracker.log_adapter(saved.model_copy(update={"adapter_name": name}))
        gc.collect()
        kinds = [one for one in gc.get_objects() if isinstance(one, type)]
        return sum(kind.__name__ == AdapterModel.__name__ for kind in kinds)

    modules = set(sys.modules)
    assert num_kept("another") == num_kept("a third")
    assert not [name for name in set(sys.modules) - modules if name.startswith("code_model_")]


def test_no_base_weights_are_stored(tracker: Tracker, saved: SavedRecord, uri: str) -> None:
    """A logged adapter is as large as itself, the code that loads it, and some kilobytes."""
    files = [path for path in model_folder(tracker, uri).rglob("*") if path.is_file()]

    assert [path.name for path in files if path.suffix == ".safetensors"] == [
        "adapter_model.safetensors"
    ]
    given = [file for path in (CODE, *CODE_BESIDE) for file in (path, *path.glob("*.py"))]
    code = sum(file.stat().st_size for file in given if file.is_file())
    assert sum(path.stat().st_size for path in files) < saved.adapter_bytes + code + 20_000


def test_same_adapter_is_logged_once(tracker: Tracker, saved: SavedRecord, uri: str) -> None:
    """Logging the same adapter again gives the same model, which the run shows once."""
    assert tracker.log_adapter(saved) == uri

    outputs = logged(tracker.run).outputs
    assert outputs is not None
    assert [f"models:/{output.model_id}" for output in outputs.model_outputs].count(uri) == 1


def test_half_logged_adapter_is_completed(tracker: Tracker, saved: SavedRecord, uri: str) -> None:
    """A model that a kill left without all its files is filled, under the same URI."""
    (model_folder(tracker, uri) / "MLmodel").unlink()
    client_of(tracker.run).finalize_logged_model(uri.removeprefix("models:/"), "FAILED")

    assert tracker.log_adapter(saved) == uri
    assert (model_folder(tracker, uri) / "MLmodel").is_file()


@pytest.mark.slow
def test_answers_in_a_new_process(
    tracker: Tracker,
    saved: SavedRecord,
    uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A logged adapter, loaded by its URI without this project, answers as transformers does."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.run.tracking_uri)
    rows = json.dumps([{"prompt": prompt} for prompt in PROMPTS])
    done = subprocess.run(
        [sys.executable, "-P", "-c", ANSWER_IN_A_NEW_PROCESS, uri, rows],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )

    assert "kernels" not in done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    base, chats = Path(saved.base.location), [as_chat(prompt) for prompt in PROMPTS]
    assert answers == greedy_answers(base, saved.folder, chats)
    assert answers != greedy_answers(base, None, chats)


def test_messages_and_prompts_answer_alike(tracker: Tracker, uri: str) -> None:
    """A prompt is a user's message, and messages may come as a list or as JSON."""
    model = Loaded(tracker, uri)
    chat = [{"role": "user", "content": PROMPTS[0]}]

    answers = model.answers([{"prompt": PROMPTS[0]}])
    assert model.answers([{"messages": chat}]) == answers
    assert model.answers([{"messages": json.dumps(chat)}]) == answers


@pytest.mark.parametrize(
    "messages", ["[", "3", '{"role": "user"}', [{"role": "user"}], ["hello"], []], ids=str
)
def test_messages_that_are_no_talk_are_refused(
    tracker: Tracker, uri: str, messages: object
) -> None:
    """What is no list of messages is reported, and is no failure of the server."""
    with pytest.raises(MlflowException, match="must be a list of objects"):
        Loaded(tracker, uri).model.unwrap_python_model()._job(
            {"messages": messages}, "tickets.v1", Decoding(8, 0.0, None, ())
        )


@pytest.mark.parametrize("temperature", [-1.0, math.nan, math.inf])
def test_a_temperature_is_none_or_more(tracker: Tracker, uri: str, temperature: float) -> None:
    """Others are refused, not taken for greedy."""
    model = Loaded(tracker, uri).model.unwrap_python_model()
    with pytest.raises(MlflowException, match="possible is 0 or more"):
        model._decoding(temperature=temperature)


@pytest.mark.parametrize("row", [{"text": "hello"}, {"prompt": None}, {}])
def test_row_without_question_is_refused(
    tracker: Tracker, uri: str, row: dict[str, object]
) -> None:
    """A table or row without prompt and messages raises, and is not left out in silence."""
    with pytest.raises(MlflowException, match="needs"):
        Loaded(tracker, uri).answers([row])


def test_max_new_tokens_bounds_the_answer(tracker: Tracker, uri: str) -> None:
    """The signature's params reach the model."""
    model = Loaded(tracker, uri)
    rows: list[dict[str, object]] = [{"prompt": PROMPTS[0]}]

    (short,), (long,) = (model.answers(rows, max_new_tokens=number) for number in (1, 12))
    assert len(short) < len(long)
    assert long.startswith(short)


def test_base_without_chat_template(
    tracker: Tracker, uri: str, saved: SavedRecord, tmp_path: Path
) -> None:
    """Without a chat template the prompt is continued as it is, on the base the user names."""
    plain = tiny_llama(tmp_path / "plain", chat_template=False)
    model = Loaded(tracker, uri, base=plain)

    answers = model.answers([{"prompt": prompt} for prompt in PROMPTS])
    assert answers == greedy_answers(plain, saved.folder, PROMPTS)


@pytest.mark.parametrize("layers", [1, 3])
def test_adapter_for_another_base_is_refused(
    tracker: Tracker, uri: str, tmp_path: Path, layers: int
) -> None:
    """A base with fewer or more layers than the adapter was made for raises on loading."""
    other = tiny_llama(tmp_path / "other", layers=layers)

    with pytest.raises(ValueError, match="trained on another base"):
        Loaded(tracker, uri, base=other, base_fingerprint="")


def test_another_base_of_the_same_shape_is_refused(
    tracker: Tracker, uri: str, tmp_path: Path
) -> None:
    """Other weights than the trained ones are recognized, and accepted where that is asked for."""
    other = tiny_llama(tmp_path / "other", seed=1)

    with pytest.raises(ValueError, match="not the one that the adapters were trained on"):
        Loaded(tracker, uri, base=other)
    assert Loaded(tracker, uri, base=other, base_fingerprint="").answers([{"prompt": "x"}])


def test_missing_base_says_how_to_name_it(
    tracker: Tracker, saved: SavedRecord, tmp_path: Path
) -> None:
    """A base that is gone and has no public name is an error that shows the remedy."""
    gone = saved.base.model_copy(
        update={"location": str(tmp_path / "gone"), "reference": str(tmp_path / "gone")}
    )
    uri = tracker.log_adapter(saved.model_copy(update={"base": gone, "adapter_name": "gone"}))
    assert uri

    with pytest.raises(ValueError, match="base_model"):
        Loaded(tracker, uri)
