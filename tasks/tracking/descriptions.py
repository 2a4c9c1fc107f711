"""Descriptions of experiments, runs and registered models: lines that people and we may edit.

MLflow shows them as Markdown, without tables. Each of our lines has a name, and is replaced by its
name, so that what people write beside them stays.
"""

import re
from collections.abc import Mapping

NOTE_TAG = "mlflow.note.content"
_EXPERIMENT = "LoRA adapters that adapterflow trained. The latest run: "
_MODEL = "LoRA adapters that adapterflow retrained. The champion is "


def with_lines(text: str, lines: Mapping[str, str]) -> str:
    """Return a description with these lines by name, replaced where it has them, else added."""
    for name, value in lines.items():
        line = f"- **{name}**: {' '.join(value.split())}"
        found = re.compile(rf"^- \*\*{re.escape(name)}\*\*:.*$", re.MULTILINE)
        if match := found.search(text):
            text = f"{text[: match.start()]}{line}{text[match.end() :]}"
        else:
            text = f"{text.rstrip()}\n{line}".lstrip("\n")
    return text


def of_experiment(now: str, run_name: str, of_run: str) -> str:
    """Return an experiment's description, made from its latest run's; people's own stays."""
    return _unless_own(now, _EXPERIMENT, f"{run_name}\n\n{of_run}")


def of_model(now: str, champion: int | None, of_version: str) -> str:
    """Return a registered model's description, made from its champion's; people's own stays."""
    who = f"version {champion}.\n\n{of_version}" if champion else "not chosen yet."
    return _unless_own(now, _MODEL, who)


def _unless_own(now: str, beginning: str, rest: str) -> str:
    return now if now.strip() and not now.startswith(beginning) else beginning + rest
