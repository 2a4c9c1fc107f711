"""Verify that a saved adapter works: load it on a fresh base, and sample answers of both."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from tasks.config import InferenceSettings
from tasks.engine.adapters import adapters_disabled, load_adapter, probe_logits
from tasks.engine.data.tokens import PreparedData
from tasks.engine.objectives import matches, objective_of
from tasks.engine.preparation import open_data
from tasks.errors import VerificationError
from tasks.records import DataRecord, LoadedRecord, SampleRecord, SavedRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OnAnswers = Callable[[int, int], None]


def load_and_sample(
    model: "PreTrainedModel",
    saved: SavedRecord,
    data: DataRecord,
    settings: InferenceSettings,
    on_progress: OnAnswers | None = None,
) -> LoadedRecord:
    """Load the saved adapter into a fresh base, and sample answers with and without it.

    Args:
        model: the base, without adapters.
        saved: the saved adapter.
        data: the data; the first held-out rows are answered, none if there are none.
        settings: number of rows, batch size, most tokens of an answer.
        on_progress: called with the number of answers so far, and of all.

    Raises:
        UserError: a prompt leaves no room for an answer.
        VerificationError: the loaded adapter changes no logit of the base.
    """
    before = probe_logits(model)
    load_adapter(model, saved.folder, saved.adapter_name)
    effect = (probe_logits(model) - before).abs().max().item()
    if not effect:
        raise VerificationError(
            "the saved adapter, loaded into the base, changes none of its logits"
        )
    samples = _sample(model, saved, open_data(data, saved.base), settings, on_progress)
    return LoadedRecord(
        saved=saved,
        logit_effect=effect,
        num_samples=len(samples),
        base_exact_match=_share([sample.base_matches for sample in samples]),
        adapter_exact_match=_share([sample.adapter_matches for sample in samples]),
        samples=tuple(samples),
    )


def _sample(
    model: "PreTrainedModel",
    saved: SavedRecord,
    data: PreparedData,
    settings: InferenceSettings,
    on_progress: OnAnswers | None,
) -> list[SampleRecord]:
    questions = data.questions(settings.sample_rows)
    if not questions:
        return []
    objective = objective_of(saved.base.settings.task)
    prompts = [objective.prompt(*one) for one in questions]
    expected = [objective.expected(*one) for one in questions]
    done = 0
    if on_progress:
        on_progress(0, 2 * len(prompts))

    def count(more: int) -> None:
        nonlocal done
        done += more
        if on_progress:
            on_progress(done, 2 * len(prompts))

    def answers() -> list[str]:
        given = objective.answer(
            model,
            data.renderer.tokenizer,
            prompts,
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            on_progress=count,
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
        for (_, example), wanted, base, adapter in zip(
            questions, expected, plain, adapted, strict=True
        )
    ]


def _share(hits: list[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None
