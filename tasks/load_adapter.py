"""Step 6 of 6: load the saved adapter on a fresh base, and let both answer."""

from typing import TYPE_CHECKING

from tasks.config import InferenceSettings
from tasks.durability.step import step
from tasks.engine import workbench
from tasks.engine.adapters.activation import adapters_disabled
from tasks.engine.adapters.injection import probe_logits
from tasks.engine.adapters.loading import load_adapter as load_into
from tasks.engine.data.prepared_data import PreparedData
from tasks.engine.objectives.generation import matches
from tasks.engine.objectives.objective import Objective
from tasks.engine.objectives.registry import objective_of
from tasks.engine.preparation import open_data
from tasks.errors import VerificationError
from tasks.records import DataRecord, LoadedRecord, RunRecord, SampleRecord, SavedRecord
from tasks.runtime.progress import logger, progress
from tasks.tracking import Tracker

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@step
def load_adapter(
    saved: SavedRecord, data: DataRecord, settings: InferenceSettings, run: RunRecord
) -> LoadedRecord:
    """Load the saved adapter and sample answers, base beside adapter, as they are given in use.

    Raises:
        VerificationError: the loaded adapter has no effect on the base.
    """
    model = workbench.take(saved.base)
    before = probe_logits(model)
    load_into(model, saved.folder, saved.adapter_name)
    effect = (probe_logits(model) - before).abs().max().item()
    if not effect:
        raise VerificationError("the loaded adapter changes no logit of the base")
    kind = objective_of(saved.base.settings.task)
    samples = _sample(model, kind, open_data(data, saved.base), settings)
    record = LoadedRecord(
        saved=saved,
        logit_effect=effect,
        num_samples=len(samples),
        base_exact_match=_share([sample.base_matches for sample in samples]),
        adapter_exact_match=_share([sample.adapter_matches for sample in samples]),
        samples=tuple(samples),
    )
    _report(record, Tracker(run))
    return record


def _sample(
    model: "PreTrainedModel", kind: Objective, data: PreparedData, settings: InferenceSettings
) -> list[SampleRecord]:
    if data.eval is None or data.record.row_format == "text":
        return []
    examples = data.eval.examples[: settings.sample_rows]
    prompts = [kind.prompt(data.renderer, example) for example in examples]
    expected = [kind.expected(data.renderer, example) for example in examples]

    with progress("answer") as shown:

        def answers() -> list[str]:
            given = kind.answer(
                model,
                data.renderer.tokenizer,
                prompts,
                max_new_tokens=settings.max_new_tokens,
                batch_size=settings.batch_size,
                on_progress=lambda count: shown.add(count, 2 * len(prompts)),
            )
            return [one.text for one in given]

        adapted = answers()
        with adapters_disabled(model):
            plain = answers()
    return [
        SampleRecord(
            prompt=example.question,
            expected=wanted,
            base_answer=base,
            adapter_answer=adapter,
            base_matches=matches(base, wanted),
            adapter_matches=matches(adapter, wanted),
        )
        for example, wanted, base, adapter in zip(examples, expected, plain, adapted, strict=True)
    ]


def _share(hits: list[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None


def _report(record: LoadedRecord, tracker: Tracker) -> None:
    if record.base_exact_match is None or record.adapter_exact_match is None:
        logger().info("loaded; it changes logits by up to %.2f", record.logit_effect)
        return
    tracker.log_metrics(
        {
            "eval/base_exact_match": record.base_exact_match,
            "eval/adapter_exact_match": record.adapter_exact_match,
        }
    )
    tracker.log_table([sample.model_dump() for sample in record.samples], "samples.json")
    logger().info(
        "%d held-out answers exactly right: base %.0f %%, adapter %.0f %%",
        record.num_samples,
        100 * record.base_exact_match,
        100 * record.adapter_exact_match,
    )
