"""Score one model on tasks of lm-evaluation-harness, as it is in memory."""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tasks.engine.adapters import AdapterSet
from tasks.engine.eval_mode import eval_mode
from tasks.engine.excerpts import listed, reason
from tasks.engine.failures import failure
from tasks.engine.scoring.harness_library import import_harness, undisturbed
from tasks.engine.scoring.harness_tasks import HarnessTasks, metric_name
from tasks.errors import AdapterflowError
from tasks.records import BASE, HarnessModel, HarnessScore, HarnessTask
from tasks.runtime.progress import Progress, progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BOOTSTRAP_SAMPLES = 1000
"""For standard errors that no formula gives; the harness's 100,000 take minutes."""
_KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until")
"""The harness's kinds of requests to a model, each a method."""
_STDERR = "_stderr"
_MOST_WARNINGS = 5
"""Of a model: some tasks cause one for each row."""


def score_on_harness(
    adapters: AdapterSet, name: str, prompted_as: str, opened: HarnessTasks, made_from: str
) -> HarnessModel:
    """Score an adapter of the set, or the base, on all tasks.

    Args:
        adapters: one base with its adapters.
        name: the adapter to score, or `base`.
        prompted_as: the adapter whose tokenizer and chat template write the prompts.
        opened: the tasks.
        made_from: the sha256 of all that the scores depend on.

    Raises:
        UserError: a task fails.
        PassingError: a task needs the network, which is away.
    """
    harness = import_harness()
    warned: list[str] = []
    started = time.perf_counter()
    with adapters.using(None if name == BASE else name) as model, eval_mode(model):
        lm = _as_upstream(model, adapters, prompted_as, opened)
        _show_progress(lm, name)
        try:
            with undisturbed(warned.append):
                found = harness.evaluate(
                    lm=lm,
                    task_dict=opened.as_upstream(),
                    limit=opened.settings.limit,
                    bootstrap_iters=_BOOTSTRAP_SAMPLES,
                    log_samples=False,
                    apply_chat_template=opened.settings.apply_chat_template,
                    fewshot_as_multiturn=True,
                )
        except AdapterflowError:
            raise
        except Exception as error:
            raise failure(
                error,
                f"lm-evaluation-harness can't score the {name} on "
                f"{listed(opened.settings.tasks)}: {reason(error)}",
            ) from error
        finally:
            for kind in _KINDS:  # else it would refer to itself, and keep the base in memory
                delattr(lm, kind)
    return HarnessModel(
        name=name,
        made_from=made_from,
        tasks=tuple(_tasks(found)),
        scores=tuple(_scores(found)),
        warnings=tuple(_first(warned)),
        seconds=time.perf_counter() - started,
    )


def _as_upstream(
    model: "PreTrainedModel", adapters: AdapterSet, prompted_as: str, opened: HarnessTasks
) -> Any:  # noqa: ANN401 - it has no types for mypy
    """Wrap the model as the harness takes one."""
    from lm_eval.models.huggingface import HFLM

    prompter = adapters.adapters[prompted_as]
    with undisturbed(), _tied_as_it_is(model):
        return HFLM(
            pretrained=model,
            # It may get another padding token, and is padded on another side.
            tokenizer=copy.deepcopy(prompter.tokenizer),
            batch_size=opened.settings.batch_size,
            backend="causal",
            # In bfloat16, answers of different likelihood would be equally likely.
            softmax_dtype="float32",
            chat_template_args=prompter.chat.chat_template_kwargs,
        )


@contextmanager
def _tied_as_it_is(model: "PreTrainedModel") -> Iterator[None]:
    """Keep the harness from tying embeddings, of which an adapter may have copies."""
    model.tie_weights = lambda *_, **__: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.tie_weights


class _Answered:
    """What the harness tells of each answered request, to keep it in a cache."""

    def __init__(self) -> None:
        self.shown: Progress | None = None
        self.total = 0

    def add_partial(self, kind: str, request: object, answer: object) -> None:  # noqa: ARG002
        if self.shown:
            self.shown.add(1, self.total)


def _show_progress(lm: Any, model: str) -> None:  # noqa: ANN401
    """Show how many of the requests of a kind are answered, and of which tasks they are."""
    answered = _Answered()
    lm.set_cache_hook(answered)
    for kind in _KINDS:
        setattr(lm, kind, _shown(getattr(lm, kind), answered, model))


def _shown(
    ask: Callable[..., list[Any]], answered: _Answered, model: str
) -> Callable[[list[Any]], list[Any]]:
    def with_progress(requests: list[Any]) -> list[Any]:
        tasks = listed(dict.fromkeys(one.task_name for one in requests))
        with progress(f"{model} on {tasks}: request") as shown:
            answered.shown, answered.total = shown, len(requests)
            shown.at(0, len(requests))
            try:
                return ask(requests)
            finally:
                answered.shown = None

    return with_progress


def _first(warned: Sequence[str]) -> list[str]:
    """Return the first few warnings, each once, and how many others there were."""
    each = list(dict.fromkeys(warned))
    more = len(each) - _MOST_WARNINGS
    return [*each[:_MOST_WARNINGS], *([f"{more} more warnings"] if more > 0 else [])]


def _tasks(found: Mapping[str, Any]) -> Iterator[HarnessTask]:
    for name, counts in found["n-samples"].items():
        yield HarnessTask(
            name=name,
            version=str(found["versions"].get(name)),
            num_rows=counts["effective"],
            num_fewshot=found["n-shot"].get(name) or 0,
        )


def _scores(found: Mapping[str, Any]) -> Iterator[HarnessScore]:
    """Yield the scores in the results, whose keys are such as `acc,none`."""
    for task, values in found["results"].items():
        better = found["higher_is_better"].get(task, {})
        for key, value in values.items():
            metric, comma, of_filter = key.partition(",")
            number = _number(value)
            if not comma or metric.endswith(_STDERR) or number is None:
                continue
            yield HarnessScore(
                task=task,
                metric=metric_name(metric, of_filter),
                value=number,
                stderr=_number(values.get(f"{metric}{_STDERR},{of_filter}")),
                higher_is_better=better.get(metric),
            )


def _number(value: object) -> float | None:
    """Return a score as a number; None for `N/A`, and for what a task computes beside scores."""
    try:
        return None if isinstance(value, str) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
