"""How conversations are rendered travels with the adapter to every later answer."""

import json
from pathlib import Path

import pytest
from agent_templates import AGENT_SHAPES
from engine_steps import injected, training

from tasks import engine
from tasks.config import DataSettings, InferenceSettings, OutputSettings, RowFormat
from tasks.engine.adapters.adapter_set import AdapterSet
from tasks.engine.base.base_models import load_base, load_tokenizer
from tasks.engine.data.rendering.rendering import Renderer
from tasks.engine.data.rows.conversations import Example, Message
from tasks.engine.data.splits.examples import read_examples
from tasks.engine.data.tokens.prepared_data import PreparedData
from tasks.engine.preparation import prepare_data
from tasks.records import InjectedRecord, SavedRecord
from tasks.tracking.served_model import tokenizers as served_tokenizers
from tasks.tracking.served_model.adapter_files import chat_options
from tasks.tracking.served_model.prompts import ask

TEMPLATE = "{{ 'It is ' + day + '. ' }}" + AGENT_SHAPES["thinking switched off"].template
KWARGS = {"day": "Monday", "enable_thinking": False}
TALK = ("user", "fruit?"), ("assistant", "apple"), ("user", "more"), ("assistant", "pear")


def data_of(base: InjectedRecord, folder: Path) -> PreparedData:
    """Prepare two conversations with a template of their own, one of them held out."""
    rows = [[("system", f"be number {n}"), *TALK] for n in range(2)]
    lines = [
        {"messages": [{"role": role, "content": text} for role, text in turns]} for turns in rows
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "own.jinja").write_text(TEMPLATE)
    settings = DataSettings(
        train=str(folder / "rows.jsonl"),
        eval_fraction=0.5,
        chat_template=str(folder / "own.jinja"),
        chat_template_kwargs=KWARGS,
        system_in_user=True,
    )
    return prepare_data(read_examples(settings, 0), settings, 0, base.lora.base, folder / "tokens")


@pytest.fixture(scope="module")
def made(
    tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreparedData, SavedRecord]:
    """Train an adapter on them, save it, and remove the template's file."""
    folder = tmp_path_factory.mktemp("made")
    model, record = injected(tiny_base, folder)
    data = data_of(record, folder)
    trained = engine.train_adapter(
        model, record, data.record, training(max_steps=1, eval_steps=None), folder / "checkpoints"
    )
    (folder / "own.jinja").unlink()
    saved = engine.save_adapter(model, trained, data.record, OutputSettings(), folder / "adapter")
    return data, saved


EXAMPLE = Example(1, (Message("system", "s"), Message("user", "fruit?"), Message("assistant", "")))


def test_loaded_adapter_asks_as_it_was_trained(made: tuple[PreparedData, SavedRecord]) -> None:
    """Evaluation, `predict` and exports write the prompt that the training wrote."""
    data, saved = made
    tokenizer = load_tokenizer(saved.base.location, None)
    adapters = AdapterSet(load_base(saved.base), tokenizer, saved.base)

    loaded = adapters.load(saved.folder)

    prompt = data.renderer.prompt(EXAMPLE).text
    assert prompt.startswith("It is Monday. <|im_start|>user\ns\n\nfruit?")
    chat = loaded.chat
    renderer = Renderer.of(loaded.tokenizer, loaded.template, RowFormat.MESSAGES, (), chat)
    assert renderer.prompt(EXAMPLE).text == prompt


def test_served_model_asks_as_it_was_trained(made: tuple[PreparedData, SavedRecord]) -> None:
    """The code that MLflow stores finds the template and its variables in the adapter's folder."""
    data, saved = made
    folder = str(saved.folder)
    tokenizer = served_tokenizers.load_tokenizer(folder, saved.base.location, None)
    turns = [{"role": one.role, "content": one.content} for one in EXAMPLE.prompt_messages]

    asked = ask(tokenizer, turns, None, chat_options(folder))

    assert asked.text == data.renderer.prompt(EXAMPLE).text


def test_conversation_of_several_rows_is_sampled_once(
    made: tuple[PreparedData, SavedRecord],
) -> None:
    """Step 6 reads the template from the record, and answers each held-out conversation once."""
    data, saved = made
    assert data.record.eval
    assert (data.record.eval.num_examples, data.record.eval.num_rows) == (1, 2)

    settings = InferenceSettings(sample_rows=3, max_new_tokens=2)
    loaded = engine.load_adapter(load_base(saved.base), saved, data.record, settings)

    assert [sample.expected for sample in loaded.samples] == ["pear"]
