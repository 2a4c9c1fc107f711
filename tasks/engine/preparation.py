"""The data as tokens: made once a run, before step 1, and read by every step from its files.

A malformed row is thus found within seconds, before any weights are loaded. The user's files may
change later: the run keeps the rows that its record names.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from tasks.config import DataSettings, RowFormat, Template
from tasks.engine.base.base_models import end_ids, load_tokenizer
from tasks.engine.base.input_limits import check_embedded, limits_of
from tasks.engine.base.sources import base_sha256
from tasks.engine.data.chat_template import read_chat_template, unread_kwargs
from tasks.engine.data.conversations import Example
from tasks.engine.data.examples import ExampleSets, Split
from tasks.engine.data.prepared_data import PreparedData
from tasks.engine.data.rendering import Renderer, choose_template
from tasks.engine.data.template_limits import Trial, try_template
from tasks.engine.data.token_files import MappedRows, TokenFile, write_token_file
from tasks.engine.data.tokenization import SplitCounts, Tokenized, TokenizedSplit
from tasks.engine.objectives.objective import Objective
from tasks.engine.objectives.registry import objective_of
from tasks.errors import UserError
from tasks.records import (
    BaseModelRecord,
    BaseSource,
    ChatOptions,
    DataRecord,
    FileRecord,
    SplitRecord,
)

TEXTS = (RowFormat.TEXT, RowFormat.LABELLED, RowFormat.TAGGED)
"""Formats of rows that are texts without turns, which no chat template is for."""

_TRIED_ROWS = 4
OnRows = Callable[[int, int], None]


def prepare_data(  # noqa: PLR0913 - the rows, how they become tokens, and where those go
    sets: ExampleSets,
    settings: DataSettings,
    seed: int,
    base: BaseSource,
    folder: Path,
    on_progress: OnRows | None = None,
) -> PreparedData:
    """Tokenize the examples and write each split to a token file.

    Args:
        sets: the examples, as `read_examples` read them with these settings and this seed.
        settings: where they are from, and how they become tokens.
        seed: of the split.
        base: the model that they are tokenized for.
        folder: for the files; existing ones are replaced. Equal data makes equal files.
        on_progress: called with the number of finished rows and of all rows, split by split.

    Raises:
        UserError: a row cannot be used; the message names it.
        AdapterflowError: the files cannot be written.
    """
    chat_template = read_chat_template(settings.chat_template)
    tokenizer = load_tokenizer(base.location, base.revision, chat_template)
    task = objective_of(base.settings.task)
    template = choose_template(settings.template, tokenizer, is_text=sets.row_format in TEXTS)
    _check_used(settings, template)
    chat = ChatOptions.of(settings)
    ends = end_ids(base.location, base.revision)
    renderer = Renderer.of(tokenizer, template, sets.row_format, ends, chat)
    splits = {"train": sets.train, **({"eval": sets.eval} if sets.eval else {})}
    if template is Template.CHAT:
        trials = [trial for one in splits.values() for trial in _trials(one, chat)]
        try_template(tokenizer, trials)
    records, files = {}, []
    for name, split in splits.items():
        file = folder / f"{name}.arrow"
        counts = SplitCounts(split)
        tokenized = _embedded(task.tokenize(split, renderer, settings, base), split.source, base)
        write_token_file(file, _counted(tokenized, counts, on_progress))
        records[name] = counts.record()
        files.append(FileRecord.of(file))
    record = DataRecord(
        settings=settings,
        seed=seed,
        row_format=sets.row_format.value,
        template=template.value,
        chat_template=chat_template,
        unread_chat_template_kwargs=unread_kwargs(tokenizer, chat),
        train=records["train"],
        eval=records.get("eval"),
        num_eval_rows_in_train=sets.num_eval_rows_in_train,
        labels=sets.labels,
        untrained_labels=sets.untrained_labels,
        unread=dict(sets.unread),
        base_sha256=base_sha256(base),
        tokens=tuple(files),
    )
    return _opened(record, renderer, task)


def _trials(split: Split, chat: ChatOptions) -> Iterator[Trial]:
    """Yield the first rows of a split and the longest one, to try a chat template on."""
    longest = max(split.examples, key=_num_characters)
    for one in (*split.examples[:_TRIED_ROWS], longest):
        turns = [message.for_template() for message in one.messages]
        tools = {"tools": json.loads(one.tools)} if one.tools else {}
        options = {**chat.chat_template_kwargs, **tools}
        yield Trial(f"{split.source}, row {one.row}", turns, options)


def _num_characters(example: Example) -> int:
    return len(example.tools) + sum(len(message.content) for message in example.messages)


def open_data(record: DataRecord, base: BaseModelRecord) -> PreparedData:
    """Open the recorded data, in a later step, a retry or another process.

    Raises:
        UserError: a token file is missing or has changed.
    """
    if spoiled := record.spoiled_files():
        raise UserError(f"{spoiled[0]} is missing or has changed since this run recorded it")
    renderer = recorded_renderer(record, base, RowFormat(record.row_format))
    return _opened(record, renderer, objective_of(base.settings.task))


def recorded_renderer(record: DataRecord, base: BaseSource, row_format: RowFormat) -> Renderer:
    """Return the renderer of a training, for rows of any format.

    Args:
        record: the training's data.
        base: its base.
        row_format: of the rows to render.
    """
    tokenizer = load_tokenizer(base.location, base.revision, record.chat_template)
    ends = end_ids(base.location, base.revision)
    return Renderer.of(tokenizer, Template(record.template), row_format, ends, record.chat)


def _check_used(settings: DataSettings, template: Template) -> None:
    """Check that no setting of chat templates was given for rows that are rendered without one."""
    if template is not Template.CHAT and (unused := settings.chat_settings):
        raise UserError(
            f"data.{unused[0]} was given, but the rows are rendered without a chat template: they "
            "have no turns, or the tokenizer has no chat template; remove the setting, or set "
            "data.chat_template"
        )


def _opened(record: DataRecord, renderer: Renderer, task: Objective) -> PreparedData:
    train, *held_out = record.tokens

    def split(of: SplitRecord, given: FileRecord) -> TokenizedSplit:
        file = TokenFile(given.path)
        return TokenizedSplit(MappedRows(file, task.row_type), file.examples(), of)

    return PreparedData(
        renderer=renderer,
        train=split(record.train, train),
        eval=split(record.eval, held_out[0]) if record.eval else None,
        record=record,
    )


def _counted(
    tokenized: Iterator[Tokenized], counts: SplitCounts, on_progress: OnRows | None
) -> Iterator[Tokenized]:
    total, number = len(counts.split.examples), 0
    for one in tokenized:
        counts.add(one)
        number += not one.is_another
        yield one
        if on_progress:
            on_progress(number, total)


def _embedded(tokenized: Iterator[Tokenized], source: str, base: BaseSource) -> Iterator[Tokenized]:
    """Yield the examples unchanged, checking that the base has an embedding for each token."""
    limits, tokenizer = limits_of(base), load_tokenizer(base.location, base.revision)
    for one in tokenized:
        if one.row is not None:
            where = f"{source}, row {one.example.row}"
            check_embedded(one.row.sequences, where, limits, tokenizer)
        yield one
