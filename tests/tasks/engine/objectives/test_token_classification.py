"""The task of tagging words, through the whole flow: rows of words to tags, and entities."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from engine_steps import loaded
from flow_runs import tiny_config
from mlflow_runs import client_of, logged
from starting_points import starting_configuration
from tiny_models import tiny_bert, tiny_llama, tiny_tokenizer

from flows.cli import runs
from tasks.config import BaseModelSettings, DataSettings, PredictBatchConfig, Task
from tasks.engine.base.sources import find_base
from tasks.engine.batching.batches import as_items
from tasks.engine.batching.padded_rows import LabeledBatches
from tasks.engine.data.splits.examples import read_examples
from tasks.engine.objectives.class_counts import entity_f1
from tasks.engine.objectives.entities import names_entities
from tasks.engine.objectives.token_classification import TokenClassification, first_tokens
from tasks.engine.preparation import prepare_data
from tasks.errors import UserError
from tasks.inference import predict_batch as task
from tasks.records import ReportRecord, TrainingPlan

TAGS = ("B-PLACE", "B-WHO", "I-PLACE", "O")
STARTS = (["The"], ["What", "is", "the"], ["Tell", "me", "of", "the"], ["Where", "is", "the"])
ENDS = (
    (["fox"], ["B-WHO"]),
    (["capital", "of", "France"], ["O", "O", "B-PLACE"]),
    (["Paris", "France"], ["B-PLACE", "I-PLACE"]),
    (["dog", "again"], ["B-WHO", "O"]),
)
ROWS = [
    {"tokens": [*start, *words], "tags": ["O"] * len(start) + tags}
    for start in STARTS
    for words, tags in ENDS
]
PLAN = TrainingPlan(
    made_for="",
    batching="padded",
    prefix_length=0,
    batch_tokens=2**30,
    loss_in_chunks=False,
    num_threads=1,
)


def written(file: Path, rows: Sequence[object]) -> str:
    """Write rows as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_words_are_judged_by_their_first_token() -> None:
    """Whether tokens bring the space before them or not, each word has its own first one."""
    words = ["The", "transfer", "of", "Ünïcode", "x"]
    text = " ".join(words)
    encoded = tiny_tokenizer()(text, return_offsets_mapping=True)
    places = first_tokens(words, encoded["offset_mapping"])
    starts = [text.index(word) for word in words]
    found = [place for place in places if place is not None]
    assert len(set(found)) == len(words)
    for place, start in zip(found, starts, strict=True):
        begins, ends = encoded["offset_mapping"][place]
        assert begins <= start < ends


def test_special_tokens_padding_and_cut_words_are_no_words() -> None:
    """Tokens without characters belong to none; a word of which nothing is left has no token."""
    offsets = [(0, 0), (0, 2), (3, 4), (4, 6), (0, 0), (0, 0)]
    assert first_tokens(["ab", "cde", "f"], offsets) == [1, 2, None]


def test_the_loss_is_the_plain_one(tmp_path: Path) -> None:
    """Rows in padded micro-batches have the loss of transformers' own, which each has alone."""
    folder = tiny_bert(tmp_path / "base")
    settings = BaseModelSettings.model_validate(
        {
            "source": str(folder),
            "dtype": "float32",
            "task": "token-classification",
            "labels": TAGS,
        }
    )
    model, _ = loaded(folder, settings)
    data = DataSettings(train=written(tmp_path / "rows.jsonl", ROWS), eval_fraction=0)
    sets = read_examples(data, 0, Task.TOKEN_CLASSIFICATION)
    rows = prepare_data(sets, data, 0, find_base(settings), tmp_path / "tokens").train.rows
    alone = [
        row.num_trained_tokens
        * model(
            input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])
        ).loss.item()
        for row in rows
    ]
    micro_batches = LabeledBatches(model.config.pad_token_id, 30)(as_items(rows))["micro_batches"]
    losses = [
        TokenClassification().loss(model, micro_batch, PLAN)[0].item()
        for micro_batch in micro_batches
    ]
    assert len(micro_batches) > 1
    assert sum(losses) == pytest.approx(sum(alone), rel=1e-5)
    assert sum(row.num_trained_tokens for row in rows) == sum(len(row["tags"]) for row in ROWS)


def test_only_rows_that_lost_something_count_as_truncated(tmp_path: Path) -> None:
    """A row that is cut within its last word counts; one that just fits does not."""
    row = {"tokens": ["The", "transfer" * 9], "tags": ["O", "B-WHO"]}
    settings = BaseModelSettings.model_validate(
        {"source": str(tiny_bert(tmp_path / "base")), "task": "token-classification"}
    )
    length = len(tiny_tokenizer()(" ".join(row["tokens"]))["input_ids"])
    counted = []
    for limit in (length, length - 1):
        data = DataSettings(
            train=written(tmp_path / "rows.jsonl", [row]), eval_fraction=0, max_length=limit
        )
        sets = read_examples(data, 0, Task.TOKEN_CLASSIFICATION)
        base = find_base(settings, sets.labels)
        counted.append(prepare_data(sets, data, 0, base, tmp_path / "tokens").train.record)
    assert [one.longest_tokens for one in counted] == [length, length - 1]
    assert [one.num_shortened_texts for one in counted] == [0, 1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens and 1 tags"),
        ({"tokens": ["a b"], "tags": ["O"]}, 'token "a b" contains whitespace'),
        ({"tokens": "a b", "tags": ["O"]}, "tokens is .*must be a list"),
        ({"tokens": [], "tags": []}, "must be a list"),
    ],
)
def test_rows_that_cannot_be_tagged_are_refused(
    row: dict[str, object], message: str, tmp_path: Path
) -> None:
    """The message names the row and what is wrong with it."""
    file = written(tmp_path / "rows.jsonl", [ROWS[0], row])
    with pytest.raises(UserError, match=f"row 2: .*{message}"):
        read_examples(DataSettings(train=file), 0, Task.TOKEN_CLASSIFICATION)


def test_a_starting_point_knows_tagged_rows(tmp_path: Path) -> None:
    """`init` sets the task by the columns."""
    file = written(tmp_path / "rows.jsonl", ROWS)
    assert "task: token-classification" in starting_configuration(Path(file), "org/model")


def test_an_entity_counts_whole_or_not_at_all() -> None:
    """Same words and same kind; an inside of another kind begins an entity, as CoNLL reads it."""
    wanted = [["B-A", "I-A", "O", "B-B"], ["I-A", "O"]]
    assert entity_f1(wanted, wanted) == 1.0
    assert entity_f1(wanted, [["B-A", "O", "O", "B-B"], ["I-A", "O"]]) == pytest.approx(2 / 3)
    assert entity_f1(wanted, [["B-A", "I-B", "O", "B-B"], ["B-A", "O"]]) == pytest.approx(4 / 7)
    assert entity_f1([["O"]], [["O"]]) == 1.0
    assert names_entities(TAGS)
    assert not names_entities(["NOUN", "VERB"])


@pytest.fixture(scope="module", params=[tiny_bert, tiny_llama], ids=["encoder", "decoder"])
def report(
    prefect_server: None,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> ReportRecord:
    """Run the flow once, on an encoder and on a decoder."""
    folder = tmp_path_factory.mktemp("tagging")
    config = tiny_config(
        request.param(folder / "base"),
        Path(written(folder / "rows.jsonl", ROWS * 4)),
        base_model={"task": "token-classification", "hub_id": None},
        lora={"target_modules": "all-linear"},
        training={"num_train_epochs": 6, "learning_rate": 2e-2, "load_best_model_at_end": False},
        inference={"sample_rows": 100},
    )
    return runs.execute(runs.create_run(config))


def test_the_six_steps_tag(report: ReportRecord) -> None:
    """Tags are learned, judged by word and by entity, and the adapter answers from its file."""
    assert report.data.labels == TAGS
    metrics = report.trained.eval_metrics
    assert set(metrics) == {"accuracy", "macro_f1", "entity_f1"}
    assert metrics["accuracy"] > 0.7
    assert logged(report.run).data.metrics["eval/entity_f1"] == metrics["entity_f1"]
    assert report.loaded.base_exact_match is not None
    assert report.loaded.adapter_exact_match is not None
    assert report.loaded.adapter_exact_match > report.loaded.base_exact_match
    card = (report.saved.folder / "README.md").read_text()
    assert "pipeline_tag: token-classification" in card
    assert "AutoModelForTokenClassification" in card


def test_each_word_gets_a_tag(report: ReportRecord, tmp_path: Path) -> None:
    """Answers have a tag a word and a probability, in `predict` and in MLflow alike."""
    import mlflow.pyfunc
    import pandas as pd  # type: ignore[import-untyped]

    words = [["The", "fox"], ["Where", "is", "the", "Paris", "France"]]
    given = PredictBatchConfig.model_validate(
        {
            "adapters": [{"source": str(report.saved.folder)}],
            "input": written(
                tmp_path / "rows.jsonl", [*({"tokens": one} for one in words), {"text": "The fox"}]
            ),
            "output": str(tmp_path / "answers.jsonl"),
        }
    )
    record = task.predict_batch.fn(given)
    answers = [json.loads(line) for line in record.output.path.read_text().splitlines()]
    assert "the column tokens, whose words are to be tagged, is missing" in answers[2]["error"]
    for one, answer in zip(words, answers, strict=False):
        assert len(answer["answer"].split()) == len(one)
        assert 0 < answer["probability"] <= 1
    assert report.model_uri
    stored = client_of(report.run).get_logged_model(report.model_uri.removeprefix("models:/"))
    model = mlflow.pyfunc.load_model(stored.artifact_location.removeprefix("file://"))
    served = model.predict(pd.DataFrame({"tokens": words}))
    assert [one["tags"] for one in served] == [a["answer"].split() for a in answers[:2]]
    assert served[0]["probability"] == pytest.approx(answers[0]["probability"], abs=1e-4)
