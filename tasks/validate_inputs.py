"""Before step 1: validate configuration and data, before anything expensive is done."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tasks.config import RowFormat, TrainAdapterConfig
from tasks.durability.run_folder import check_output_folder
from tasks.durability.step import step
from tasks.engine.adapters import check_source_tokenizer, prompted_otherwise, resolve_lora
from tasks.engine.base import (
    check_files,
    check_local_weights,
    check_push,
    end_ids,
    find_base,
    limits_of,
    tokenizer_of,
    traits_of,
)
from tasks.engine.data.rendering import choose_template, read_chat_template
from tasks.engine.data.rendering import start as start_trials
from tasks.engine.data.rows import unread_text
from tasks.engine.data.splits import odd_text, read_examples
from tasks.engine.data.tokens import PreparedData, changes
from tasks.engine.preparation import TEXTS, prepare_data
from tasks.errors import PassingError, UserError
from tasks.inference.adapter_to_continue import kept_source, learned_by
from tasks.launching import check_processes, check_room
from tasks.records import (
    BaseSource,
    DataRecord,
    InputsRecord,
    ResolvedLora,
    SourceRecord,
    SplitRecord,
    source_in,
    tokens_in,
)
from tasks.runtime.libraries import import_libraries_of_checks, import_uncollected
from tasks.runtime.progress import logger, progress
from tasks.tracking import is_mlflow_uri


@step
def validate_inputs(config: TrainAdapterConfig, run_folder: Path) -> InputsRecord:
    """Validate all that can be validated without the model's weights, the cheapest first.

    The data is read and the LoRA configuration resolved only here: steps, retries and resumed runs
    read the record, and the tokens from the files in the run's folder that it names.

    Raises:
        UserError: some input can't work.
        AdapterflowError: the tokens can't be written.
    """
    base, lora, prepared = check_inputs(config, run_folder)
    data = prepared.record
    _report(data)
    if warning := _limited_by_positions(base, data):
        logger().warning(warning)
    return InputsRecord(base=base, lora=lora, data=data)


class CheckedInputs(NamedTuple):
    """What the validation found, for later use."""

    base: BaseSource
    lora: ResolvedLora
    data: PreparedData


def check_inputs(config: TrainAdapterConfig, run_folder: Path) -> CheckedInputs:
    """Validate all that can be validated without the model's weights; return what was found.

    Args:
        config: the training's configuration.
        run_folder: where the token files are written, and a copy of the adapter to begin with.

    Raises:
        UserError: some input can't work.
    """
    check_processes(config.launch, config.training)
    check_room(config.launch)
    wanted = config.base_model
    source = kept_source(config.lora, config.tracking, source_in(run_folder))
    # The rows come before the base, as finding a GGUF base converts it, which takes minutes.
    objective = config.training.objective
    replays = source is not None and config.data.replay > 0
    learned = learned_by(source, config.tracking) if source and replays else None
    sets = read_examples(config.data, config.seed, wanted.task, wanted.labels, objective, learned)
    check_output_folder(config)
    read_chat_template(config.data.chat_template)
    if config.output.push_to_hub:
        check_push(config.output.push_to_hub)
    if config.training.early_stopping_patience and not sets.eval:
        raise UserError(
            "training.early_stopping_patience needs held-out rows; set data.eval, or "
            "data.eval_fraction above 0"
        )
    check_files(wanted)
    start_trials()  # beside the imports
    import_libraries_of_checks()
    base = _checked_base(config, sets.labels)
    lora = _resolved(config, base, source)
    with progress("tokenized row") as shown:
        folder = tokens_in(run_folder)
        data = prepare_data(sets, config.data, config.seed, base, folder, shown.at)
    check_processes(config.launch, config.training, data.record.train.num_rows)
    if source and (other := tuple(prompted_otherwise(source, data.record))):
        lora = lora.model_copy(update={"warnings": (*lora.warnings, *other)})
    return CheckedInputs(base, lora, data)


def check_base_early(config: TrainAdapterConfig, row_formats: Sequence[RowFormat]) -> None:
    """Check the base, the LoRA settings and the chat template, while a server starts.

    `validate_inputs` does the same, and makes further attempts where the Hub can't be reached.

    Args:
        config: the training's configuration.
        row_formats: of the training rows.

    Raises:
        UserError: the base, or a setting for it, can't work.
    """
    generates = traits_of(config.base_model.task).generates
    with suppress(PassingError):
        # The rows' classes are not known yet; how many there are does not matter here.
        labels = config.base_model.labels or (() if generates else ("no", "yes"))
        base = _checked_base(config, labels)
        if not is_mlflow_uri(config.lora.from_ or ""):  # of which the run makes a copy
            _resolved(config, base)
        template = read_chat_template(config.data.chat_template)
        tokenizer = tokenizer_of(base, template)
        end_ids(base.location, base.revision)
        for row_format in row_formats:
            choose_template(config.data.template, tokenizer, is_text=row_format in TEXTS)


def _checked_base(config: TrainAdapterConfig, labels: Sequence[str]) -> BaseSource:
    base = find_base(config.base_model, labels)
    check_local_weights(base)
    tokenizer_of(base)
    return base


def _resolved(
    config: TrainAdapterConfig, base: BaseSource, source: SourceRecord | None = None
) -> ResolvedLora:
    """Resolve the LoRA configuration, and check what has to fit it."""
    import_uncollected("tasks.engine.training.training")
    from tasks.engine.training import check_training_settings

    lora = resolve_lora(config.lora, base, source)
    if lora.source:
        template = read_chat_template(config.data.chat_template)
        check_source_tokenizer(lora.source, tokenizer_of(base, template))
    check_training_settings(config.training, lora, base)
    return lora


def _limited_by_positions(base: BaseSource, record: DataRecord) -> str | None:
    """Return a warning if rows were truncated at the model's positions, below `max_length`."""
    positions = limits_of(base).positions
    cut = [
        one.num_shortened_answers + one.num_shortened_texts + one.num_dropped_rows
        for one in (record.train, record.eval)
        if one
    ]
    if not positions or positions >= record.settings.max_length or not any(cut):
        return None
    longest = max(one.longest_tokens for one in (record.train, record.eval) if one)
    # Rows longer than that were not truncated there: rotary models accept more positions.
    if longest > positions:
        return None
    return (
        f"rows are truncated at the model's {positions} positions, although data.max_length is "
        f"{record.settings.max_length}"
    )


def _report(record: DataRecord) -> None:
    _report_split("training", record.train, record.labels)
    if record.eval:
        _report_split("held-out", record.eval, record.labels)
    if record.unread:
        logger().warning("columns not read: %s", unread_text(record.unread))
    for warning in changes(record):
        logger().warning(warning)
    if record.untrained_labels:
        logger().warning(
            "%d labels have no training rows: %s",
            len(record.untrained_labels),
            ", ".join(record.untrained_labels),
        )
    for odd in record.odd:
        logger().warning(odd_text(odd))


def _report_split(what: str, split: SplitRecord, labels: Sequence[str]) -> None:
    logger().info(
        "%d %s rows%s, %d tokens (longest %d), %s, sha256 %s",
        split.num_rows,
        what,
        split.made_of,
        split.num_tokens,
        split.longest_tokens,
        f"{len(labels)} labels" if labels else f"{split.num_trained_tokens} of them trained on",
        split.sha256[:12],
    )
    if lengths := split.answer_lengths:
        logger().info("chosen answers have %.0f tokens on average, rejected ones %.0f", *lengths)
    for part in split.parts:
        logger().info("%d of them are of %s", part.num_rows, part.name)
