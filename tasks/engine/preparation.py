"""The data as tokens: made once a run, before step 1, and read by every step from its files.

A malformed row is thus found within seconds, before any weights are loaded. The user's files may
change later: the run keeps the rows that its record names.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.config import (
    BaseModelSettings,
    DataSettings,
    LearningObjective,
    RowFormat,
    Template,
)
from tasks.engine.base import (
    base_sha256,
    check_embedded,
    end_ids,
    find_base,
    limits_of,
    tokenizer_of,
)
from tasks.engine.data.rendering import (
    Rendered,
    Renderer,
    Trial,
    answered,
    choose_template,
    marked,
    read_chat_template,
    seen,
    try_template,
    unread_kwargs,
)
from tasks.engine.data.rows import Example
from tasks.engine.data.splits import DrawnRows, ExampleSets, Split, mixed, open_sources
from tasks.engine.data.tokens import (
    MappedRows,
    OddTokens,
    PreparedData,
    SplitCounts,
    TokenFile,
    Tokenized,
    TokenizedSplit,
    write_token_file,
)
from tasks.engine.objectives import Objective, objective_of
from tasks.errors import UserError
from tasks.records import (
    BaseModelRecord,
    BaseSource,
    ChatOptions,
    DataRecord,
    FileRecord,
    OddRows,
    RowPlace,
    ShownRow,
    SplitRecord,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    tokens = _Tokens(settings, base, folder, on_progress, sets.objective)
    tokens.check_chat_settings(sets.train)
    train, trained, odd = tokens.write("train", sets.train)
    _check_kinds(train, sets.objective)
    held_out = tokens.write("eval", sets.eval) if sets.eval else None
    templates = [Template(part.template) for part in train.by_source]
    record = DataRecord(
        settings=settings,
        objective=sets.objective,
        seed=seed,
        row_format=", ".join(sets.row_formats),
        template=(Template.CHAT if Template.CHAT in templates else templates[0]).value,
        chat_template=tokens.chat_template,
        unread_chat_template_kwargs=unread_kwargs(tokens.tokenizer, tokens.chat),
        train=train,
        eval=held_out[0] if held_out else None,
        replayed=sets.replayed,
        num_eval_rows_in_train=sets.num_eval_rows_in_train,
        labels=sets.labels,
        untrained_labels=sets.untrained_labels,
        unread=dict(sets.unread),
        odd=(*sets.odd, *odd),
        shown=tuple(tokens.shown(sets.train)),
        base_sha256=base_sha256(base),
        tokens=(trained, held_out[1]) if held_out else (trained,),
    )
    return _opened(record, tokens.tokenizer, tokens.ends, tokens.task)


def _check_kinds(train: SplitRecord, objective: LearningObjective) -> None:
    num_desirable = train.num_desirable_rows
    if objective is LearningObjective.KTO and num_desirable in (0, train.num_rows):
        given, lacking = ("true", "false") if num_desirable else ("false", "true")
        raise UserError(
            f"{train.source}: all {train.num_rows:,} training rows have the label {given}, but "
            f"training.objective kto learns from good and bad answers; add rows with the label "
            f"{lacking}, or, if there are some, hold out fewer rows or others (data.eval_fraction, "
            "seed)" + (", or set objective: sft" if num_desirable else "")
        )


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
    tokenizer = tokenizer_of(base, record.chat_template)
    ends = end_ids(base.location, base.revision)
    return _opened(record, tokenizer, ends, objective_of(base.settings.task, record.objective))


def recorded_renderer(record: DataRecord, base: BaseSource, row_format: RowFormat) -> Renderer:
    """Return the renderer of a training, for rows of any format.

    Args:
        record: the training's data.
        base: its base.
        row_format: of the rows to render.
    """
    tokenizer = tokenizer_of(base, record.chat_template)
    ends = end_ids(base.location, base.revision)
    return Renderer.of(tokenizer, Template(record.template), row_format, ends, record.chat)


def first_row(
    settings: DataSettings,
    base: BaseModelSettings,
    objective: LearningObjective = LearningObjective.SFT,
) -> ShownRow:
    """Return the first row of the first source as the model sees it; no other row is read.

    Raises:
        UserError: the row or the base cannot be used.
        PassingError: the Hub cannot be reached.
    """
    opened = open_sources(settings, base.task, objective)[0]
    rows = opened.checked(1)
    name = opened.settings.short_name
    split = mixed([DrawnRows(opened.source, name, opened.row_format, rows, range(1))], seed=0)
    found = find_base(base, sorted(rows.first_with))
    return next(_Tokens(settings, found, Path(), None, objective).shown(split))


class _Tokens:
    """Makes the token files of a run's splits."""

    def __init__(
        self,
        settings: DataSettings,
        base: BaseSource,
        folder: Path,
        on_progress: OnRows | None,
        objective: LearningObjective,
    ) -> None:
        self.chat_template = read_chat_template(settings.chat_template)
        self.tokenizer = tokenizer_of(base, self.chat_template)
        self.chat = ChatOptions.of(settings)
        self.task = objective_of(base.settings.task, objective)
        self.ends = end_ids(base.location, base.revision)
        self._settings, self._base, self._folder = settings, base, folder
        self._on_progress = on_progress

    def check_chat_settings(self, split: Split) -> None:
        """Check that no setting of chat templates was given for rows that are rendered without one.

        Raises:
            UserError: one was.
        """
        templates = {self._renderer(part).template for part in split.by_source}
        if Template.CHAT not in templates and (unused := self._settings.chat_settings):
            raise UserError(
                f"data.{unused[0]} was given, but the rows are rendered without a chat template: "
                "they have no turns, or the tokenizer has no chat template; remove the setting, or "
                "set data.chat_template"
            )

    def write(self, name: str, split: Split) -> tuple[SplitRecord, FileRecord, list[OddRows]]:
        """Write the token file of a split; return its counts, the file, and what is odd."""
        renderers = [self._renderer(part) for part in split.by_source]
        counts = [
            SplitCounts(part, renderer.template.value)
            for part, renderer in zip(split.by_source, renderers, strict=True)
        ]
        for part, renderer in zip(split.by_source, renderers, strict=True):
            if renderer.template is Template.CHAT and len(part.examples):
                try_template(self.tokenizer, _trials(part, self.chat))
        odd = OddTokens(split, generates=self.task.traits.generates)
        file = self._folder / f"{name}.arrow"
        rows = self._counted(self._tokenized(split, renderers), counts, odd)
        write_token_file(file, rows, has_sources=bool(split.parts))
        record = _total(split, [one.record() for one in counts])
        return record, FileRecord.of(file), odd.found()

    def shown(self, split: Split) -> Iterator[ShownRow]:
        """Yield the first row of each source that is trained on, as the model sees it."""
        for part in split.by_source:
            renderer = self._renderer(part)
            trained = (one for one in part.examples if not renderer.trains_nothing(one))
            if example := next(trained, None):
                rows = self._seen(renderer, example)
                place = RowPlace(source=part.name, row=example.row)
                text = marked(rows[-1])
                if example.rejected:
                    rejected = self._rejected(renderer, example)
                    text = f"{text.rstrip()}\n\nrejected: {rejected.rstrip()}"
                if example.is_desirable is not None:
                    text = f"{text.rstrip()}\n\nlabel: {str(example.is_desirable).lower()}"
                yield ShownRow(place=place, text=text, num_rows=len(rows))

    def _seen(self, renderer: Renderer, example: Example) -> list[Rendered]:
        """Return the rows of an example as they are shown."""
        if self.task.row_type.labels_are_tokens:
            rows = renderer.rows(example)
            return [seen(renderer, one, self._settings) for one in rows]
        asked = self.task.prompt(renderer, example).text
        return [answered(asked, self.task.expected(renderer, example))]

    def _rejected(self, renderer: Renderer, example: Example) -> str:
        """Return the rejected answer of a pair as it is shown, from its beginning on."""
        row = self._seen(renderer, example.as_rejected)[-1]
        start = row.answers[0][0] if row.answers else len(row.text)
        spans = tuple((a - start, b - start) for a, b in row.answers)
        return marked(Rendered(row.text[start:], spans))

    def _renderer(self, part: Split) -> Renderer:
        row_format = part.row_format or RowFormat.AUTO
        is_text = row_format in TEXTS
        template = choose_template(self._settings.template, self.tokenizer, is_text=is_text)
        return Renderer.of(self.tokenizer, template, row_format, self.ends, self.chat)

    def _tokenized(self, split: Split, renderers: Sequence[Renderer]) -> Iterator[Tokenized]:
        """Yield the examples of a split as tokens, in the order of the mix.

        Each source is tokenized by itself, by its own renderer and with its name in messages.
        """
        parts = [
            self._embedded(part, renderer)
            for part, renderer in zip(split.by_source, renderers, strict=True)
        ]
        if not split.parts:
            yield from parts[0]
            return
        # An example may become several rows, which stay together.
        by_example = [groupby(part, key=lambda one: one.example.row) for part in parts]
        for number in split.order:
            for one in next(by_example[number])[1]:
                yield replace(one, source=number)
        for ended in by_example:
            next(ended, None)  # what is checked after the last example

    def _embedded(self, part: Split, renderer: Renderer) -> Iterator[Tokenized]:
        """Yield the examples of a source as tokens, if the base has an embedding for each."""
        limits = limits_of(self._base)
        if not len(part.examples):  # all of the source is in the other split
            return
        for one in self.task.tokenize(part, renderer, self._settings, self._base):
            if one.row is not None:
                where = f"{part.source}, row {one.example.row}"
                check_embedded(one.row.sequences, where, limits, self.tokenizer)
            yield one

    def _counted(
        self, tokenized: Iterator[Tokenized], counts: Sequence[SplitCounts], odd: OddTokens
    ) -> Iterator[Tokenized]:
        total = sum(len(one.split.examples) for one in counts)
        number = 0
        for one in tokenized:
            number += not one.is_another
            counts[one.source].add(one)
            odd.add(one.source, one)
            yield one
            if self._on_progress:
                self._on_progress(number, total)


def _total(split: Split, records: Sequence[SplitRecord]) -> SplitRecord:
    """Return the sum of the counts of a split's sources."""
    if not split.parts:
        return records[0]
    numbers = Counter[str]()
    for one in records:
        numbers.update({k: v for k, v in one.model_dump().items() if k.startswith("num_")})
    return SplitRecord(
        source=split.source,
        sha256=split.sha256,
        longest_tokens=max(one.longest_tokens for one in records),
        parts=tuple(records),
        **numbers,
    )


def _opened(
    record: DataRecord,
    tokenizer: "PreTrainedTokenizerBase",
    ends: tuple[int, ...],
    task: Objective,
) -> PreparedData:
    train, *held_out = record.tokens

    def split(of: SplitRecord, given: FileRecord) -> TokenizedSplit:
        file = TokenFile(given.path)
        renderers = tuple(
            Renderer.of(
                tokenizer, Template(one.template), RowFormat(one.row_format), ends, record.chat
            )
            for one in of.by_source
        )
        rows = MappedRows(file, task.row_type)
        return TokenizedSplit(rows, file.examples(), of, file.sources(), renderers)

    opened = split(record.train, train)
    return PreparedData(
        renderer=next(one for one in opened.renderers if one.template == record.template),
        train=opened,
        eval=split(record.eval, held_out[0]) if record.eval else None,
        record=record,
    )
