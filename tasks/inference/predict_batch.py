"""Answer a file of rows, chunk by chunk."""

import time
from collections.abc import Sequence

from tasks.config import PredictBatchConfig
from tasks.durability.step import step
from tasks.engine.adapters.adapter_set import AdapterSet, LoadedAdapter
from tasks.engine.adapters.compatibility import tokenizer_identity
from tasks.engine.base.task_traits import traits_of
from tasks.engine.scoring.answer_files import write_answers
from tasks.engine.scoring.prediction import Answered, Question, answer_questions, prompts_sha256
from tasks.engine.scoring.question_files import QuestionFile, check_columns, open_questions
from tasks.inference.adapters_on_base import found_adapters, load_adapters
from tasks.inference.answer_chunks import AnswerChunks
from tasks.records import FileRecord, PredictionRecord
from tasks.runtime.code_identity import code_sha256
from tasks.runtime.progress import logger, progress

_SHOWN_ERRORS = 3


@step
def predict_batch(config: PredictBatchConfig) -> PredictionRecord:
    """Answer the rows of a file, and write them with their answers to another.

    A row that can't be answered has an error in its place. Answers are kept as they come; a run
    that was stopped goes on behind its last whole chunk.

    Raises:
        UserError: a file, an adapter or the base can't be used, or no row can be answered.
    """
    asked = open_questions(config)
    with found_adapters(config.adapters, config.tracking_uri) as folders:
        adapters = load_adapters(config.base_model, config.adapters, folders)
    columns = _columns(config, adapters)
    check_columns(asked.rows, list(columns.values()))
    with AnswerChunks.of(asked.output, _job(asked, config, adapters)) as chunks:
        started = time.perf_counter()
        answers, num_before = _answers(chunks, adapters, asked.questions, config)
        seconds = time.perf_counter() - started
        chunks.finish(asked.output, lambda file: write_answers(asked, answers, columns, file))
    record = _record(asked, answers, adapters, seconds, num_before)
    _report(record, num_before)
    return record


def _columns(config: PredictBatchConfig, adapters: AdapterSet) -> dict[str, str]:
    """Name the new columns, by what of an answer goes there."""
    columns = {"answer": config.answer_column}
    if not traits_of(adapters.base.settings.task).generates:
        columns["probability"] = config.probability_column
    return {**columns, "error": config.error_column}


def _job(
    asked: QuestionFile, config: PredictBatchConfig, adapters: AdapterSet
) -> dict[str, object]:
    """Return all that the answers are a function of.

    How many at once changes the speed and, of a base in half precision, what is rounded off; a run
    that memory stopped is to go on with fewer. A chat template may write today's date: so the
    first prompt of each adapter counts as it is rendered now.
    """
    base = adapters.base.settings
    return {
        "code": code_sha256(),
        "prompts": prompts_sha256(adapters, asked.questions),
        "input": FileRecord.of(asked.source).sha256,
        "base_model": f"{adapters.base.fingerprint} {adapters.model.dtype} {base.quantization}",
        "task": [base.task, *adapters.base.labels],
        "adapters": {name: _identity(one) for name, one in adapters.adapters.items()},
        "adapter_column": config.adapter_column,
        "max_new_tokens": config.max_new_tokens,
        "chunk_rows": config.chunk_rows,
    }


def _identity(adapter: LoadedAdapter) -> dict[str, object]:
    """Give what an adapter's answers are a function of, besides the base."""
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
    """Give an answer for each question, and how many an earlier try had."""
    total, num_before = len(questions), 0
    answers: list[Answered] = []
    with progress("row") as shown:
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
                shown.add(len(kept), total)
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
        remarks=tuple(remark for one in adapters.adapters.values() for remark in one.remarks),
    )


def _report(record: PredictionRecord, num_before: int) -> None:
    earlier = f", {num_before} of them by an earlier try" if num_before else ""
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
