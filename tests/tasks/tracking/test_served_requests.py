"""What a served model is asked: each row has a question, or the request is refused as a whole."""

import json
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel
from tiny_models import tiny_adapter, tiny_llama

from tasks.config import AdapterSettings
from tasks.inference.serving import bundle_adapters

GOOD = {"prompt": "What is the capital of France?"}
CHAT = [{"role": "user", "content": "a"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PyFuncModel:
    """Load a bundle as MLflow's server does."""
    import mlflow.pyfunc

    root = tmp_path_factory.mktemp("served")
    base = tiny_llama(root / "base", layers=1)
    folder = tiny_adapter(base, root / "adapter")
    recorded = {"base_model": {"reference": str(base), "dtype": "float32"}, "template": "chat"}
    (folder / "manifest.json").write_text(json.dumps(recorded))
    bundle_adapters([AdapterSettings(name="only", source=str(folder))], root / "bundle", None)
    loaded: PyFuncModel = mlflow.pyfunc.load_model(str(root / "bundle"))
    return loaded


def served(
    model: PyFuncModel, body: object, content_type: str = "application/json"
) -> tuple[int, Any]:
    """Return the status and the body of the answer, by what MLflow's server calls."""
    from mlflow.pyfunc.scoring_server import invocations

    try:
        found = invocations(
            json.dumps(body).encode(), "application/json", model, model.metadata.get_input_schema()
        )
    except MlflowException as error:
        return error.get_http_status_code(), json.loads(error.serialize_as_json())
    return found.status, json.loads(found.response)


NO_QUESTIONS: dict[str, tuple[object, str]] = {
    "null": ({"prompt": None}, "a row needs `prompt`, a text, or `messages`"),
    "nothing": ({}, "a row needs `prompt`"),
    "a number": ({"prompt": 3}, "prompt is 3; it must be text"),
    "an object": ({"prompt": {}}, "prompt is {}; it must be text"),
    "false": ({"prompt": False}, "prompt is false; it must be text"),
    "empty": ({"prompt": ""}, "prompt is empty; it must contain text"),
    "blank": ({"prompt": " \n\u3000"}, "prompt is empty; it must contain text"),
    "both": ({"prompt": "a", "messages": CHAT}, "this one has both"),
    "no list": ({"messages": 3}, "messages must be a list of objects with role and content: 3"),
    "no messages": ({"messages": []}, "messages must be a list"),
    "empty message": (
        {"messages": [{"role": "user", "content": " "}]},
        "messages ends without a question",
    ),
    "answer alone": (
        {"messages": [{"role": "assistant", "content": "a"}]},
        "messages ends without a question",
    ),
    "null message": (
        {"messages": [{"role": "user", "content": None}]},
        "the content of message 1 is null; it must be text",
    ),
    "no text": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        "only parts of the type text are supported",
    ),
    "tools of no list": (
        {"messages": CHAT, "tools": "look it up"},
        'tools must be a list of tools: "look it up"',
    ),
    "a tool of no object": (
        {"messages": CHAT, "tools": ["look it up"]},
        'tools must be a list of tools, but one is "look it up"',
    ),
    "deep": ({"messages": "[" * 5000}, "messages must be a list"),
    "long": ({"messages": "x" * 300_000}, "… (300,002 characters)"),
    "key twice": (
        {"messages": '[{"role": "user", "content": "a", "content": "b"}]'},
        "messages must be a list",
    ),
}


@pytest.mark.parametrize("form", ["inputs", "dataframe_records"])
@pytest.mark.parametrize(("row", "message"), NO_QUESTIONS.values(), ids=NO_QUESTIONS)
def test_a_row_without_a_question_refuses_the_request(
    model: PyFuncModel, row: object, message: str, form: str
) -> None:
    """Status 400 with one short message that names the row, whatever the other rows ask."""
    status, body = served(model, {form: [GOOD, row, GOOD]})
    assert status == 400
    assert body["message"].startswith("row 2: ")
    assert message in body["message"]
    assert len(body["message"]) < 300
    assert "stack_trace" not in body
    assert served(model, {form: [GOOD]})[0] == 200


def test_all_bad_rows_are_named_up_to_a_limit(model: PyFuncModel) -> None:
    """Of many bad rows the first are named and the others counted."""
    _, body = served(model, {"inputs": [{"prompt": n} for n in range(20)]})
    assert body["message"].count("; it must be text") == 5
    assert body["message"].endswith("row 5: prompt is 4; it must be text; and 15 more rows")


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": []},
        {"inputs": "text"},
        {"inputs": {"prompt": []}},
        {"inputs": [{}]},
        {"inputs": 3},
        {"dataframe_split": {"columns": ["prompt"], "data": []}},
        {"instances": [{"prompt": "a"}, {"messages": CHAT}]},
        {"instances": [{"prompt": None}]},
        {"inputs": [{"prompt": "\ud800"}]},  # which pandas can't hold
    ],
    ids=json.dumps,
)
def test_a_request_without_rows_is_refused(model: PyFuncModel, body: object) -> None:
    """A request without rows is refused, not answered by an empty list."""
    status, found = served(model, body)
    assert status == 400
    assert "stack_trace" not in found


def test_a_column_of_prompts_is_a_row_each(model: PyFuncModel) -> None:
    """MLflow's forms by row and by column give the same answers."""
    prompts = ["What is red?", "What is the order?"]
    by_row = served(model, {"inputs": [{"prompt": one} for one in prompts]})
    assert by_row[0] == 200
    assert len(by_row[1]["predictions"]) == 2
    for body in (
        {"inputs": {"prompt": prompts}},
        {"instances": [{"prompt": one} for one in prompts]},
        {"dataframe_split": {"columns": ["prompt"], "data": [[one] for one in prompts]}},
    ):
        assert served(model, body) == by_row
    status, body = served(model, {"inputs": {"prompt": ["a", None]}})
    assert (status, body["message"][:6]) == (400, "row 2:")


def test_an_answer_that_messages_end_in_is_not_read(model: PyFuncModel) -> None:
    """A held-out row is asked as it is by `predict`: up to its answer."""
    answer = {"role": "assistant", "content": "b"}
    assert served(model, {"inputs": [{"messages": [*CHAT, answer]}]}) == served(
        model, {"inputs": [{"messages": CHAT}]}
    )


def test_a_failure_of_the_model_is_a_message_of_its_own(
    model: PyFuncModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The response blames the model, not the request, and the server's log has the traceback."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel for this")

    with monkeypatch.context() as patch:
        patch.setattr(model.unwrap_python_model().model, "generate", fail)
        status, body = served(model, {"inputs": [GOOD]})
    assert status == 500
    assert body["message"].startswith("the model failed: RuntimeError: no kernel for this")
    assert "stack_trace" not in body
    assert served(model, {"inputs": [GOOD]})[0] == 200
