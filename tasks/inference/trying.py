"""Ask single questions of several adapters and their base, all in memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.config import AdapterSettings, BaseModelSettings, Task
from tasks.engine.adapters import AdapterFolder, AdapterSet, check_adapter
from tasks.engine.base import end_ids, find_base, tokenizer_of, traits_of
from tasks.engine.data.rendering import Renderer
from tasks.engine.data.rows import read_question
from tasks.engine.objectives import objective_of
from tasks.engine.scoring import Answered, answer_question, read_row
from tasks.errors import UserError
from tasks.inference.adapters_on_base import (
    base_of,
    check_adapters,
    found_adapters,
    load_checked,
)
from tasks.records import ChatOptions

BASE = "base"
"""What the answers of the base are labelled with."""


@dataclass(frozen=True)
class Asking:
    """How questions are asked."""

    system: str | None = None
    """The system message of each question."""
    is_chat: bool = False
    """Whether a question continues the conversation of those before it."""
    with_base: bool = True
    """Whether the base answers, too, where answers are generated."""
    max_new_tokens: int = 128
    """Most tokens of an answer."""


@dataclass(frozen=True)
class Trial:
    """Adapters on their base that answer one question after the other, as `predict` would.

    The base reads the first adapter's prompts. In a chat each of them sees its own earlier answers.
    """

    adapters: AdapterSet
    names: Mapping[str, str]
    """The adapters' names in the set, by what their answers are labelled with."""
    asking: Asking
    turns: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    """The conversation of each label so far, if it is a chat."""

    @property
    def labels(self) -> tuple[str, ...]:
        """What the answers are labelled with, in their order."""
        generates = traits_of(self.adapters.base.settings.task).generates
        return (*([BASE] if self.asking.with_base and generates else []), *self.names)

    def answer(
        self, label: str, number: int, line: str, on_text: Callable[[str], None] | None = None
    ) -> Answered:
        """Return the answer to a question, or the error that prevents one.

        Args:
            label: who is to answer.
            number: of the question, from 1.
            line: the question.
            on_text: called with what is settled of a generated answer, token by token.
        """
        name = self.names.get(label) or next(iter(self.names.values()))
        asked = read_row(number, self._row(label, line), {name: name}, "adapter")
        if isinstance(asked, Answered):
            return asked
        return answer_question(
            self.adapters,
            asked,
            max_new_tokens=self.asking.max_new_tokens,
            uses_base=label == BASE,
            on_text=on_text,
        )

    def keep(self, line: str, answers: Mapping[str, Answered]) -> None:
        """Continue each conversation of a chat; a question without an answer is not part of it."""
        for label, given in answers.items():
            if self.asking.is_chat and (given.answer or "").strip():
                self.turns.setdefault(label, []).extend(
                    [_turn("user", line), _turn("assistant", str(given.answer))]
                )

    def _row(self, label: str, line: str) -> dict[str, Any]:
        row = question_row(self.adapters.base.settings.task, line, self.asking.system)
        if not self.asking.is_chat:
            return row
        row["messages"] = [*self.turns.get(label, ()), _turn("user", row.pop("prompt"))]
        return row


def question_row(task: Task, line: str, system: str | None) -> dict[str, Any]:
    """Return a question as the row that `predict` takes for it."""
    match task:
        case Task.SEQUENCE_CLASSIFICATION:
            return {"text": line}
        case Task.TOKEN_CLASSIFICATION:
            return {"tokens": line.split()}
    return {"prompt": line, **({"system": system} if system else {})}


def load_trial(sources: Mapping[str, str], base_model: str | None, asking: Asking) -> Trial:
    """Load adapters and their base.

    Args:
        sources: the adapters' sources, by what their answers are labelled with.
        base_model: their base, if not the one that the first names.
        asking: how questions are asked.

    Raises:
        UserError: an adapter does not exist, or does not fit the first one's base, or can't be
            asked in this way; no weight is loaded then.
    """
    names = {label: f"adapter-{number}" for number, label in enumerate(sources, 1)}
    wanted = [
        AdapterSettings.model_validate({"source": source, "name": names[label]})
        for label, source in sources.items()
    ]
    with found_adapters(wanted) as folders:
        base = check_adapters(base_of(folders[0], base_model), wanted, folders)
        _check_asking(asking, base, wanted, folders)
        return Trial(load_checked(base, wanted, folders), names, asking)


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _check_asking(
    asking: Asking,
    base: BaseModelSettings,
    wanted: Sequence[AdapterSettings],
    folders: Sequence[AdapterFolder],
) -> None:
    """Check that the task has conversations, and that each chat template takes the system message.

    Raises:
        UserError: not so.
    """
    if not traits_of(base.task).generates and (asking.is_chat or asking.system):
        raise UserError(
            f"the adapter is for {base.task}, which has neither a system message nor a "
            "conversation; leave out --system and --chat"
        )
    if not asking.system:
        return
    source = find_base(base)
    tokenizer = tokenizer_of(source)
    row_format, example = read_question(1, question_row(base.task, "question", asking.system))
    for one, folder in zip(wanted, folders, strict=True):
        found = check_adapter(folder, source, tokenizer, one.template, any_base=one.any_base)
        renderer = Renderer.of(
            found.tokenizer,
            found.template,
            row_format,
            end_ids(source.location, source.revision),
            ChatOptions.in_manifest(folder.manifest),
        )
        objective_of(base.task).prompt(renderer, example)
