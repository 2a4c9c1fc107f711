"""Answer a file of rows, chunk by chunk."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tasks.config import PredictBatchConfig
from tasks.durability.step import step
from tasks.engine.adapters import AdapterSet, LoadedAdapter, tokenizer_identity
from tasks.engine.base import base_sha256, end_ids, traits_of
from tasks.engine.scoring import (
    Answered,
    Question,
    QuestionFile,
    answer_questions,
    check_columns,
    open_questions,
    prompts_sha256,
    write_answers,
)
from tasks.inference.adapters_on_base import found_adapters, load_adapters, pinned
from tasks.inference.answer_chunks import AnswerChunks
from tasks.inference.variant_sets import with_variants
from tasks.records import FileRecord, PredictionRecord
from tasks.runtime.code_identity import code_sha256
from tasks.runtime.progress import logger, progress

_SHOWN_ERRORS = 3
_SHA256_DIGITS = 12


@step
def predict_batch(config: PredictBatchConfig) -> PredictionRecord:
    """Answer the rows of a file, and write them with their answers to another file.

    A row that can't be answered gets an error instead. Answers are saved chunk by chunk; an
    interrupted run resumes after its last complete chunk.

    Raises:
        UserError: a file, an adapter or the base can't be used, or no row can be answered.
    """
    config = with_variants(config)
    asked = open_questions(config)
    config = config.model_copy(update={"adapters": pinned(config.adapters, config.tracking_uri)})
    with found_adapters(config.adapters, config.tracking_uri) as folders:
        adapters = load_adapters(config.base_model, config.adapters, folders)
    columns = _columns(config, adapters)
    check_columns(asked.rows, list(columns.values()))
    with AnswerChunks.of(asked.output, _job(asked, config, adapters)) as chunks:
        started = time.perf_counter()
        answers, num_before = _answers(chunks, adapters, asked.questions, config)
        seconds = time.perf_counter() - started
        answers = _with_versions(asked.questions, answers, _versions(config, adapters))
        chunks.finish(asked.output, lambda file: write_answers(asked, answers, columns, file))
    record = _record(asked, answers, adapters, seconds, num_before)
    _report(record, num_before)
    return record


def _columns(config: PredictBatchConfig, adapters: AdapterSet) -> dict[str, str]:
    """Return the names of the new columns, by field of an answer."""
    columns = {"answer": config.answer_column}
    if not traits_of(adapters.base.settings.task).generates:
        columns["probability"] = config.probability_column
    return {**columns, "version": config.version_column, "error": config.error_column}


def _versions(config: PredictBatchConfig, adapters: AdapterSet) -> dict[str, str]:
    """Return which version each adapter is, by its name."""
    sources = {
        one.name: f"{one.source}@{one.revision}" if one.revision else one.source
        for one in config.adapters
    }
    return {
        name: f"{sources[name]} (sha256 {adapter.sha256[:_SHA256_DIGITS]})"
        for name, adapter in adapters.adapters.items()
    }


def _with_versions(
    questions: Sequence[Question | Answered],
    answers: Sequence[Answered],
    versions: Mapping[str, str],
) -> list[Answered]:
    """Return the answers with the versions of the adapters that gave them."""
    return [
        replace(answer, version=versions[question.adapter])
        if isinstance(question, Question) and answer.error is None
        else answer
        for question, answer in zip(questions, answers, strict=True)
    ]


def _job(
    asked: QuestionFile, config: PredictBatchConfig, adapters: AdapterSet
) -> dict[str, object]:
    """Return all that the answers depend on.

    The batch size is left out on purpose: a run that ran out of memory can be resumed with a
    smaller one (with a base in half precision, rounding may then differ). A chat template may write
    today's date, so the first prompt of each adapter is included as it is rendered now.
    """
    base = adapters.base.settings
    ends = end_ids(adapters.base.location, adapters.base.revision)
    packing = f"{adapters.model.dtype} {base.quantization}, ended by {ends}"
    return {
        "code": code_sha256(),
        "prompts": prompts_sha256(adapters, asked.questions),
        "input": FileRecord.of(asked.source).sha256,
        "base_model": f"{base_sha256(adapters.base)} {packing}",
        "task": [base.task, *adapters.base.labels],
        "adapters": {name: _identity(one) for name, one in adapters.adapters.items()},
        **_routes(config),
        "adapter_column": config.adapter_column,
        "max_new_tokens": config.max_new_tokens,
        "chunk_rows": config.chunk_rows,
    }


def _routes(config: PredictBatchConfig) -> dict[str, object]:
    """Return the values that select adapters, where these are not their names."""
    values = {one.name: one.value for one in config.adapters if one.value not in (None, one.name)}
    return {"values": values} if values else {}


def _identity(adapter: LoadedAdapter) -> dict[str, object]:
    """Return what an adapter's answers depend on, besides the base."""
    return {
        "weights": adapter.sha256,
        "configuration": adapter.config_sha256,
        "template": adapter.template,
        "end": adapter.tokenizer.eos_token,
        "response_template": getattr(adapter.tokenizer, "response_template", None),
        **tokenizer_identity(adapter.tokenizer),
    }


def _answers(
    chunks: AnswerChunks,
    adapters: AdapterSet,
    questions: Sequence[Question | Answered],
    config: PredictBatchConfig,
) -> tuple[list[Answered], int]:
    """Return an answer for each question, and how many an earlier attempt had saved."""
    total, num_before = len(questions), 0
    answers: list[Answered] = []
    with progress("row") as shown:
        shown.at(0, total)
        for start in range(0, total, config.chunk_rows):
            kept = chunks.get(start)
            if kept is None:
                kept = answer_questions(
                    adapters,
                    questions[start : start + config.chunk_rows],
                    max_new_tokens=config.max_new_tokens,
                    batch_size=config.batch_size,
                    on_progress=lambda count: shown.add(count, total),
                )
                chunks.put(start, kept)
            else:
                num_before += len(kept)
                shown.skip(len(kept), total)
            answers += kept
    return answers, num_before


def _record(
    asked: QuestionFile,
    answers: Sequence[Answered],
    adapters: AdapterSet,
    seconds: float,
    num_before: int,
) -> PredictionRecord:
    errors = [one.error for one in answers if one.error is not None]
    names = [one.adapter for one in asked.questions if isinstance(one, Question)]
    return PredictionRecord(
        output=FileRecord.of(asked.output),
        num_rows=len(answers),
        num_answered=len(answers) - len(errors),
        num_bad_rows=len(errors),
        num_rows_per_adapter={name: names.count(name) for name in adapters.adapters},
        first_errors=tuple(errors[:_SHOWN_ERRORS]),
        seconds=seconds,
        rows_per_second=(len(answers) - num_before) / seconds,
        warnings=tuple(text for one in adapters.adapters.values() for text in one.warnings),
    )


def _report(record: PredictionRecord, num_before: int) -> None:
    earlier = f", {num_before} of them by an earlier attempt" if num_before else ""
    logger().info(
        "%d of %d rows answered%s: %.1f rows/s, %s",
        record.num_answered,
        record.num_rows,
        earlier,
        record.rows_per_second,
        record.output.path,
    )
    if record.num_bad_rows:
        logger().warning("%d bad rows: %s …", record.num_bad_rows, "; ".join(record.first_errors))
