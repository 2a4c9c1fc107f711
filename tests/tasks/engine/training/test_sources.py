"""Several sources in one training: each has the tokens and the held-out loss it has alone."""

import json
from pathlib import Path

import pytest
from agent_templates import AGENT_SHAPES
from engine_steps import LABELLED, injected, loaded, training
from tiny_models import tiny_bert

from tasks import engine
from tasks.config import BaseModelSettings, DataSettings, LoraSettings, Task
from tasks.engine.base.sources import find_base
from tasks.engine.data.rendering.shown_rows import shown_text
from tasks.engine.data.splits.examples import read_examples
from tasks.engine.data.tokens.prepared_data import PreparedData
from tasks.engine.objectives.registry import objective_of
from tasks.engine.preparation import open_data, prepare_data
from tasks.engine.scoring.evaluation import row_losses

TURNS = [
    [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"The {n}."}]
    for n in range(12)
]
SOURCES: dict[str, list[dict[str, object]]] = {
    "chat": [{"messages": turns} for turns in TURNS],
    "completions": [{"prompt": f"The {n}", "completion": " fox" * (n + 1)} for n in range(8)],
    "texts": [{"text": f"A dog {n} " + "jumps " * n} for n in range(6)],
}


def written(folder: Path) -> list[str]:
    """Write each source to a file."""
    for name, rows in SOURCES.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    return [str(folder / f"{name}.jsonl") for name in SOURCES]


def prepared(base: Path, folder: Path, train: str | list[str], **more: object) -> PreparedData:
    """Tokenize the rows of one source or several, of which a third is held out."""
    given = {"train": train, "eval_fraction": 0.34, **more}
    settings = DataSettings.model_validate(given)
    source = find_base(BaseModelSettings(source=str(base)))
    return prepare_data(read_examples(settings, 0), settings, 0, source, folder)


@pytest.mark.parametrize("template", ["auto", "plain"])
def test_each_source_has_the_tokens_it_has_alone(
    tiny_base: Path, tmp_path: Path, template: str
) -> None:
    """Format, template and separator are those of the source, in the mix as alone."""
    files = written(tmp_path)
    mix = prepared(tiny_base, tmp_path / "mix", files, template=template)
    assert mix.train.record.num_rows == sum(part.num_rows for part in mix.train.record.parts)
    for number, (name, file) in enumerate(zip(SOURCES, files, strict=True)):
        alone = prepared(tiny_base, tmp_path / name, file, template=template)
        for split, of_one in ((mix.train, alone.train), (mix.eval, alone.eval)):
            assert split
            assert of_one
            rows = [row for row, at in zip(split.rows, split.sources, strict=True) if at == number]
            assert rows == list(of_one.rows)
            assert split.record.parts[number] == of_one.record


def test_the_data_is_opened_as_it_was_made(tiny_base: Path, tmp_path: Path) -> None:
    """A later step reads rows, sources and renderers from record and files."""
    model, base = loaded(tiny_base)
    del model
    made = prepared(tiny_base, tmp_path, written(tmp_path))
    opened = open_data(type(made.record).model_validate_json(made.record.model_dump_json()), base)
    assert list(opened.train.rows) == list(made.train.rows)
    assert opened.train.sources.tolist() == made.train.sources.tolist()
    assert [one.separator for one in opened.train.renderers] == ["\n\n", "", "\n\n"]
    assert (opened.renderer.template, made.record.row_format) == (
        "chat",
        "messages, prompt-completion, text",
    )


def test_questions_are_those_of_rows_with_answers(tiny_base: Path, tmp_path: Path) -> None:
    """Plain texts have nothing to answer; each other row is asked as its own source is."""
    data = prepared(tiny_base, tmp_path, written(tmp_path), template="plain")
    questions = data.questions(100)
    assert data.eval
    assert len(questions) == sum(part.num_rows for part in data.eval.record.parts[:2])
    for renderer, example in questions:
        asked = renderer.prompt(example).text
        assert asked == example.question + ("\n\n" if example.question.startswith("W") else "")


def test_a_conversation_of_several_rows_is_asked_and_counted_once(
    tiny_base: Path, tmp_path: Path
) -> None:
    """Where a template rewrites earlier answers, rows are more than what is asked or odd."""
    template = tmp_path / "template.jinja"
    template.write_text(AGENT_SHAPES["empty thinking block"].template)
    turns = [
        {"role": role, "content": f"{role} {n} " + "word " * (60 * (role == "user"))}
        for n in range(2)
        for role in ("user", "assistant")
    ]
    rows = [{"messages": [*turns, {"role": "user", "content": f"q{n}"}, turns[1]]} for n in (1, 2)]
    file = tmp_path / "talks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = {"chat_template": str(template), "eval_fraction": 0.5, "max_length": 4000}
    data = prepared(tiny_base, tmp_path / "tokens", str(file), **more)
    assert data.eval
    assert (data.eval.record.num_rows, len(data.questions(100))) == (3, 1)
    (odd,) = data.record.odd
    assert (odd.kind, odd.num_rows) == ("mostly_prompt", 1)
    (shown,) = data.record.shown
    assert (shown.num_rows, "it becomes 3 rows" in shown_text(shown)) == (3, True)


def test_the_losses_are_those_of_each_source_alone(tiny_base: Path, tmp_path: Path) -> None:
    """The held-out loss of a source is the mean over its tokens, and theirs together the total."""
    model, record = injected(tiny_base, tmp_path)
    data = prepared(tiny_base, tmp_path, written(tmp_path))
    held_out = data.eval
    assert held_out
    settings = training(load_best_model_at_end=False)
    result = engine.train_adapter(model, record, data.record, settings, tmp_path / "checkpoints")
    task = objective_of(Task.CAUSAL_LM)
    losses = row_losses(task, model, held_out.rows, 0, batch_size=1)
    assert list(result.eval_losses) == list(SOURCES)
    for number, name in enumerate(SOURCES):
        own = [one for one, at in zip(losses, held_out.sources, strict=True) if at == number]
        mean = sum(nll for nll, _ in own) / sum(count for _, count in own)
        assert result.eval_losses[name] == pytest.approx(mean, rel=1e-5)
    mean = sum(nll for nll, _ in losses) / sum(count for _, count in losses)
    assert result.eval_loss == pytest.approx(mean, rel=1e-5)


def test_one_source_has_no_losses_of_sources(tiny_base: Path, tmp_path: Path) -> None:
    """The loss of the only source is the held-out loss."""
    model, record = injected(tiny_base, tmp_path)
    data = prepared(tiny_base, tmp_path, written(tmp_path)[:1])
    result = engine.train_adapter(model, record, data.record, training(), tmp_path / "checkpoints")
    assert (result.eval_losses, data.record.train.parts) == ({}, ())


def test_metrics_are_those_of_each_source(tmp_path: Path) -> None:
    """Of classified rows, accuracy is reported for each source, too."""
    base = tiny_bert(tmp_path / "bert", hidden_size=64)
    files = [tmp_path / f"{name}.jsonl" for name in "ab"]
    for file in files:
        file.write_text("".join(json.dumps(row) + "\n" for row in LABELLED))
    settings = BaseModelSettings.model_validate(
        {"source": str(base), "dtype": "float32", "task": "sequence-classification"}
    )
    data = DataSettings.model_validate(
        {"train": [str(file) for file in files], "eval_fraction": 0.5}
    )
    prepared = engine.prepare_data(data, settings, 0, tmp_path / "tokens").record
    model, loaded_base = engine.load_base(settings, prepared.labels)
    lora = engine.configure_lora(LoraSettings(r=4), loaded_base, 0)
    record = engine.inject_adapter(model, lora, tmp_path / "initial.safetensors")
    result = engine.train_adapter(model, record, prepared, training(), tmp_path / "checkpoints")
    assert {"accuracy", "accuracy/a", "accuracy/b"} <= result.eval_metrics.keys()
    assert result.eval_losses.keys() == {"a", "b"}
