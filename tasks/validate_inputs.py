"""Before step 1: check configuration and data, while a mistake still costs seconds."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tasks.config import TrainAdapterConfig
from tasks.durability.run_folder import check_output_folder
from tasks.durability.step import step
from tasks.engine.adapters.lora import count_trainable, resolve_lora
from tasks.engine.base.base_models import load_skeleton
from tasks.engine.base.hub import check_push
from tasks.engine.base.input_limits import limits_of
from tasks.engine.base.sources import find_base
from tasks.engine.data.examples import read_examples
from tasks.engine.data.prepared_data import PreparedData
from tasks.engine.data.unread_columns import unread_text
from tasks.engine.preparation import prepare_data
from tasks.errors import UserError
from tasks.records import BaseSource, DataRecord, LoraConfigRecord, SplitRecord, tokens_in
from tasks.runtime.libraries import import_libraries
from tasks.runtime.progress import logger, progress

_REMARKS = {
    "num_shortened_texts": "%d %s texts are cut short",
    "num_shortened_answers": "%d %s answers are cut short",
    "num_dropped_rows": "%d %s rows lost their answer",
    "num_untrained_answers": (
        "%d earlier answers in %s rows are not trained on: the chat template rewrites them once "
        "the conversation goes on"
    ),
    "num_unwritten_messages": (
        "%d messages to the assistant in %s rows are left out or rewritten by the chat template"
    ),
    "num_stopped_answers": (
        "%d answers of %s rows have the text of an end token in them: they are trained on to their "
        "end, but generation stops there"
    ),
    "num_completed_answers": (
        "%d answers of %s rows are followed by nothing that stops generation in the chat template; "
        "an end token is put there"
    ),
    "num_endless_answers": (
        "%d answers of %s rows have no end, as the tokenizer has no end token: generation goes on "
        "to max_new_tokens"
    ),
    "num_reopened_answers": (
        "%d answers of %s rows are opened otherwise by the chat template than it asks for them; "
        "they are trained behind what it asks for them with"
    ),
}
"""What a user should know of a split, by the record's counts."""


@step
def validate_inputs(config: TrainAdapterConfig, run_folder: Path) -> DataRecord:
    """Check all that can be checked without the model's weights, the cheapest first.

    The data is read here and nowhere else in the run: its tokens go to files in the run's folder,
    which the steps, a retry, another process and a resumed run read.

    Raises:
        UserError: anything that was given cannot work.
        AdapterflowError: the tokens can't be written.
    """
    found = check_inputs(config, tokens_in(run_folder))
    _report(found.data.record)
    if remark := _held_to_positions(found.base, found.data.record):
        logger().warning(remark)
    return found.data.record


class CheckedInputs(NamedTuple):
    """What was found while the inputs were checked."""

    base: BaseSource
    lora: LoraConfigRecord
    data: PreparedData


def check_inputs(config: TrainAdapterConfig, folder: Path) -> CheckedInputs:
    """Check all that can be checked without the model's weights; return what was found on the way.

    Args:
        config: the training.
        folder: for the tokens.

    Raises:
        UserError: anything that was given cannot work.
    """
    # Rows before the base: a GGUF base is converted when it is first looked for.
    wanted = config.base_model
    sets = read_examples(config.data, config.seed, wanted.task, wanted.labels)
    check_output_folder(config)
    if config.output.push_to_hub:
        check_push(config.output.push_to_hub)
    if config.training.early_stopping_patience and not sets.eval:
        raise UserError(
            "training.early_stopping_patience needs held-out rows; give data.eval or an "
            "eval_fraction above 0"
        )
    import_libraries()
    base = find_base(wanted, sets.labels)
    skeleton = load_skeleton(base)
    lora = resolve_lora(config.lora, skeleton, wanted.task)
    count_trainable(lora, skeleton)
    with progress("tokenised row") as shown:
        data = prepare_data(sets, config.data, config.seed, base, folder, shown.at)
    return CheckedInputs(base, lora, data)


def _held_to_positions(base: BaseSource, record: DataRecord) -> str | None:
    """Describe that rows were cut by the model's positions, and not by the user's limit."""
    positions = limits_of(base).positions
    cut = [
        one.num_shortened_answers + one.num_shortened_texts + one.num_dropped_rows
        for one in (record.train, record.eval)
        if one
    ]
    if not positions or positions >= record.settings.max_length or not any(cut):
        return None
    longest = max(one.longest_tokens for one in (record.train, record.eval) if one)
    if longest > positions:  # rotary positions go on
        return None
    return (
        f"rows are cut at the model's {positions} positions, whatever data.max_length "
        f"{record.settings.max_length} allows"
    )


def _report(record: DataRecord) -> None:
    _say("training", record.train, record.labels)
    if record.eval:
        _say("held-out", record.eval, record.labels)
    if record.unread:
        logger().warning("not read: %s", unread_text(record.unread))
    if record.untrained_labels:
        logger().warning(
            "%d labels have no training row: %s",
            len(record.untrained_labels),
            ", ".join(record.untrained_labels),
        )
    if record.num_eval_rows_in_train:
        logger().warning(
            "%d held-out rows are training rows, too, and prove nothing",
            record.num_eval_rows_in_train,
        )


def _say(what: str, split: SplitRecord, labels: Sequence[str]) -> None:
    logger().info(
        "%d %s rows, %d tokens (longest %d), %s, sha256 %s",
        split.num_rows,
        what,
        split.num_tokens,
        split.longest_tokens,
        f"{len(labels)} labels" if labels else f"{split.num_trained_tokens} of them trained on",
        split.sha256[:12],
    )
    for name, message in _REMARKS.items():
        if number := getattr(split, name):
            logger().warning(message, number, what)
