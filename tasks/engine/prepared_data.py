"""The data, checked and tokenised before step 1, so that a bad row costs seconds and no model."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from tasks.config import DataSettings, RowFormat
from tasks.engine.base.base_models import end_ids, load_tokenizer
from tasks.engine.base.sources import BaseSource
from tasks.engine.data.examples import ExampleSets, Split, read_examples
from tasks.engine.data.rendering import Renderer, choose_template
from tasks.engine.data.tokenization import TokenizedSplit
from tasks.engine.objectives.registry import objective_of
from tasks.errors import UserError
from tasks.records import BaseModelRecord, DataRecord

OnRows = Callable[[int, int], None]


@dataclass(frozen=True)
class PreparedData:
    """Both splits as tokens, the way they were rendered, and the record of it."""

    renderer: Renderer
    train: TokenizedSplit
    eval: TokenizedSplit | None
    record: DataRecord


def prepare_data(
    sets: ExampleSets, settings: DataSettings, seed: int, base: BaseSource, on_progress: OnRows
) -> PreparedData:
    """Tokenise examples that were read as the settings and the seed say.

    Raises:
        UserError: anything about the data that cannot work, with the row.
    """
    return _prepare(sets, settings, seed, base, on_progress)


def prepare_again(record: DataRecord, base: BaseModelRecord) -> PreparedData:
    """Give the recorded data once more, as a later step or a retry needs it.

    Raises:
        UserError: the files have changed since they were recorded.
    """
    again = _remembered(record.model_dump_json(), base.model_dump_json())
    for before, after in (
        (record.train, again.record.train),
        (record.eval, again.record.eval),
    ):
        if before != after:
            name = (before or record.train).source
            raise UserError(f"{name} changed since this run began; start a new run")
    return again


@lru_cache(maxsize=1)
def _remembered(record_json: str, base_json: str) -> PreparedData:
    record = DataRecord.model_validate_json(record_json)
    base = BaseModelRecord.model_validate_json(base_json)
    sets = read_examples(record.settings, record.seed, base.settings.task, base.settings.labels)
    return _prepare(sets, record.settings, record.seed, base)


def _prepare(
    sets: ExampleSets,
    settings: DataSettings,
    seed: int,
    base: BaseSource | BaseModelRecord,
    on_progress: OnRows | None = None,
) -> PreparedData:
    tokenizer = load_tokenizer(base.location, base.revision)
    task = objective_of(base.settings.task)
    is_text = sets.row_format in (RowFormat.TEXT, RowFormat.LABELLED, RowFormat.TAGGED)
    template = choose_template(settings.template, tokenizer, is_text=is_text)
    renderer = Renderer.of(
        tokenizer, template, sets.row_format, end_ids(base.location, base.revision)
    )

    def tokenize(split: Split) -> TokenizedSplit:
        return task.tokenize(split, renderer, settings, base, on_progress)

    train = tokenize(sets.train)
    held_out = tokenize(sets.eval) if sets.eval else None
    record = DataRecord(
        settings=settings,
        seed=seed,
        row_format=sets.row_format.value,
        template=template.value,
        train=train.record,
        eval=held_out.record if held_out else None,
        num_eval_rows_in_train=sets.num_eval_rows_in_train,
        labels=sets.labels,
        untrained_labels=sets.untrained_labels,
        unread=dict(sets.unread),
    )
    return PreparedData(renderer, train, held_out, record)
