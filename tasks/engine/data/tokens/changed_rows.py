"""What rendering and truncation change in rows, as warnings."""

from collections.abc import Iterator

from tasks.records import DataRecord, SplitRecord

_CHANGES = {
    "num_shortened_texts": "{:,} {} texts are truncated",
    "num_shortened_answers": "{:,} {} answers are truncated",
    "num_dropped_rows": "{:,} {} rows are dropped, as their answer is truncated away entirely",
    "num_untrained_rows": "{:,} {} rows are dropped, as none of their answers is trained on",
    "num_equal_pairs": (
        "{:,} {} pairs are dropped, as chosen and rejected are the same, also as truncated"
    ),
    "num_empty_pairs": "{:,} {} pairs are dropped, as one of their answers is empty",
    "num_unwritten_messages": (
        "{:,} messages to the assistant or results of tools in {} rows are omitted or rewritten by "
        "the chat template"
    ),
    "num_unwritten_reasonings": (
        "{:,} answers in {} rows are trained on without their reasoning, which the chat template "
        "omits; use a template that writes it (data.chat_template)"
    ),
    "num_unwritten_tools": (
        "{:,} {} rows have tools that the chat template omits: the model is not told of them; use "
        "a template that writes them (data.chat_template)"
    ),
    "num_stopped_answers": (
        "{:,} answers in {} rows contain the text of an end token: they are trained on completely, "
        "but generation stops there"
    ),
    "num_reopened_answers": (
        "{:,} answers in {} rows follow other text in the chat template than its generation "
        "prompt; they are trained on after the generation prompt"
    ),
}
"""Warnings about a split, by the count in its record that must not be 0."""


def changes(record: DataRecord) -> list[str]:
    """Return the warnings about what the rows lost, and about variables that no template reads."""
    found = [*_changes("training", record.train)]
    if record.eval:
        found += _changes("held-out", record.eval)
    if unread := record.unread_chat_template_kwargs:
        names = ", ".join(unread)
        found.append(f"data.chat_template_kwargs sets {names}, which the chat template never reads")
    return found


def _changes(what: str, split: SplitRecord) -> Iterator[str]:
    for name, message in _CHANGES.items():
        if number := getattr(split, name):
            yield message.format(number, what)
