"""Find and load the configured tasks of lm-evaluation-harness, and name what they measure."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tasks.config import HarnessSettings
from tasks.config.likeness import nearest
from tasks.engine.excerpts import listed, reason
from tasks.engine.failures import failure
from tasks.engine.scoring.harness_library import (
    FEWSHOT_SEED,
    check_installed,
    import_harness,
    task_folder,
    undisturbed,
)
from tasks.errors import UserError
from tasks.records import FileRecord

_NO_FILTER = "none"
"""What the harness calls the filter of a task that has none."""
_NOT_RUN = {
    "UNSAFE_CODE": "runs code that the model writes",
    "MULTIMODAL": "has images or audio",
}


@dataclass(frozen=True)
class HarnessTasks:
    """The loaded tasks, with their groups, by name."""

    settings: HarnessSettings
    tasks: dict[str, Any]
    groups: dict[str, Any]
    members: dict[str, list[str]]
    """By each configured name, the tasks that it stands for: itself, or those of a group or tag."""

    @property
    def higher_is_better(self) -> dict[str, bool | None]:
        """Whether more is better of each score by its name; None where its task does not say.

        A task may compute more than it states.
        """
        found: dict[str, bool | None] = {}
        for name, task in self.tasks.items():
            better = task.higher_is_better()
            for metric in task.aggregation():
                for of_filter in _filters(task):
                    found[f"{name}/{metric_name(metric, of_filter)}"] = better.get(metric)
        for name, group in self.groups.items():
            found |= _of_group(name, group)
        return found

    def rows_sha256(self) -> str:
        """Return the sha256 of all rows that are scored, wherever they were read from."""
        digest = hashlib.sha256()
        for name, task in sorted(self.tasks.items()):
            for row in task.eval_docs:
                digest.update(json.dumps([name, row], sort_keys=True, default=str).encode())
        return digest.hexdigest()

    def as_upstream(self) -> dict[str, Any]:
        """Return them as the harness takes them, with the few-shot examples drawn from anew."""
        for task in self.tasks.values():
            task.set_fewshot_seed(FEWSHOT_SEED)
        return {"tasks": self.tasks, "groups": self.groups}


def open_tasks(settings: HarnessSettings) -> HarnessTasks:
    """Load the configured tasks and their rows; each is asked for its first prompt.

    Raises:
        UserError: there is no such task, or it can't be loaded or run.
        PassingError: a task's rows can't be downloaded now.
    """
    check_installed(settings)
    import_harness()
    manager = _manager(settings)
    if unknown := [name for name in settings.tasks if name not in manager.task_index]:
        raise UserError(_unknown_task(unknown[0], manager, task_folder(settings)))
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    members: dict[str, list[str]] = {}
    for name in settings.tasks:
        found = _loaded(name, manager, settings)
        if twice := found["tasks"].keys() & tasks.keys():
            raise UserError(
                f"evaluation.harness.tasks: {name} has the task {min(twice)}, as another one of "
                f"{listed(settings.tasks)} has; remove one of the two"
            )
        tasks |= found["tasks"]
        groups |= found["groups"]
        members[name] = list(found["tasks"])
    return HarnessTasks(settings, tasks, groups, members)


def check_guards(opened: HarnessTasks, guards: Iterable[str]) -> None:
    """Check that the guards on the harness's scores name scores of which the direction is known.

    Raises:
        UserError: one doesn't.
    """
    known = opened.higher_is_better
    for name in guards:
        if name not in known:
            near = nearest(name, known)
            hint = f" (did you mean {near}?)" if near else ""
            raise UserError(
                f"decision.guards names the score {name!r}{hint}; evaluation.harness measures "
                f"{listed(sorted(known))}"
            )
        if known[name] is None:
            raise UserError(
                f"decision.guards names the score {name!r}, and its task does not say whether "
                "more of it is better; state higher_is_better in the task's YAML, or remove the "
                "guard"
            )


def metric_name(metric: str, of_filter: str) -> str:
    """Return a metric's name, with the filter if it is one of several, or has a name."""
    return metric if of_filter == _NO_FILTER else f"{metric}/{of_filter}"


def harness_sha256(settings: HarnessSettings) -> str:
    """Return the sha256 of all that the tasks are made of: settings, release, and own files."""
    own = task_folder(settings)
    files = sorted(one for one in own.rglob("*") if _counts(one, own)) if own else []
    digests = [(str(one.relative_to(own)), FileRecord.of(one).sha256) for one in files if own]
    what = settings.model_dump(mode="json", exclude={"include_path", "batch_size"})
    return hashlib.sha256(json.dumps([what, version("lm_eval"), digests]).encode()).hexdigest()


def _counts(file: Path, folder: Path) -> bool:
    hidden = (part.startswith((".", "__pycache__")) for part in file.relative_to(folder).parts)
    return file.is_file() and not any(hidden)


def _manager(settings: HarnessSettings) -> Any:  # noqa: ANN401 - it has no types for mypy
    """Return the index of tasks; reading that of all 14,000 upstream takes ten seconds."""
    from lm_eval.tasks import TaskManager

    folder = task_folder(settings)
    with undisturbed():
        if folder:
            own = TaskManager(include_path=str(folder), include_defaults=False)
            if set(settings.tasks) <= set(own.all_subtasks):
                return own
        return TaskManager(include_path=str(folder) if folder else None)


def _unknown_task(name: str, manager: Any, folder: Path | None) -> str:  # noqa: ANN401
    near = nearest(name, manager.all_tasks)
    hint = f"; did you mean {near}?" if near else ""
    what = f"evaluation.harness.tasks names {name!r}, and there is no such task{hint}"
    if folder is None:
        return f"{what}; `lm_eval ls tasks` lists them, and include_path names a folder of your own"
    entries = [one for one in manager.task_index.values() if one.yaml_path]
    own = {one.name: one.yaml_path for one in entries if folder in one.yaml_path.parents}
    unread = sorted({*folder.rglob("*.yaml")} - {*own.values()})
    not_tasks = f"; no task: {listed([one.name for one in unread])}" if unread else ""
    return f"{what}; tasks in {folder}: {listed(sorted(own)) or 'none'}{not_tasks}"


def _loaded(name: str, manager: Any, settings: HarnessSettings) -> dict[str, Any]:  # noqa: ANN401
    """Load one task, group or tag, and try its prompts."""
    try:
        with undisturbed():
            found: dict[str, Any] = manager.load([name])
            for task in found["tasks"].values():
                _check_runs(name, task)
                _set_fewshot(task, settings.num_fewshot)
                # Templates and few-shot examples that fail should not fail after the training.
                task.build_all_requests(limit=1)
    except UserError:
        raise
    except Exception as error:
        raise failure(
            error,
            f"the task {name} of evaluation.harness can't be loaded: {reason(error)}; correct its "
            "YAML file or dataset (without a network, it has to be in the cache of datasets), or "
            "remove the task",
        ) from error
    return found


def _check_runs(name: str, task: Any) -> None:  # noqa: ANN401
    for mark, what in _NOT_RUN.items():
        if getattr(task, mark, False):
            raise UserError(
                f"the task {name} of evaluation.harness {what}, which adapterflow does not do; "
                "remove the task, and run it with lm_eval itself"
            )
    if "bypass" in task.aggregation():
        raise UserError(
            f"the task {name} of evaluation.harness measures nothing (its metric is bypass); "
            "remove the task"
        )


def _set_fewshot(task: Any, wanted: int | None) -> None:  # noqa: ANN401
    """Set the number of examples as the harness's own command does: a task's 0 stays."""
    own = task.get_config("num_fewshot")
    if own != 0 and (wanted is not None or own is None):
        task.set_config("num_fewshot", wanted or 0)
    task.set_fewshot_seed(FEWSHOT_SEED)


def _filters(task: Any) -> list[str]:  # noqa: ANN401
    given = task.get_config("filter_list")
    return [one["name"] for one in given] if given else [_NO_FILTER]


def _of_group(name: str, group: Any) -> Mapping[str, bool | None]:  # noqa: ANN401
    members = group.get_all_tasks()
    found: dict[str, bool | None] = {}
    for one in group.aggregate_metric_list or []:
        better = {task.higher_is_better().get(one.metric) for task in members}
        filters = one.filter_list or sorted({name for task in members for name in _filters(task)})
        for of_filter in filters:
            same = next(iter(better)) if len(better) == 1 else None
            found[f"{name}/{metric_name(one.metric, of_filter)}"] = same
    return found
