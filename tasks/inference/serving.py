"""Adapters put together for a server, proven to share one base."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from tasks.config import AdapterSettings
from tasks.inference.adapters_on_base import base_of, found_adapters, load_adapters
from tasks.tracking import write_bundle


def bundle_adapters(
    wanted: Sequence[AdapterSettings], folder: Path, base_model: str | None
) -> Sequence[str]:
    """Write adapters as one MLflow model, once all of them were loaded on one base.

    Args:
        wanted: the adapters; the first answers requests that name none.
        folder: the model's own, which must not be there yet.
        base_model: where their base is, if not where the first says.

    Returns:
        What could not be checked.

    Raises:
        UserError: an adapter is not there, or does not go on the first one's base.
    """
    with found_adapters(wanted) as found:
        adapters = load_adapters(base_of(found[0], base_model), wanted, found)
        write_bundle(
            folder,
            adapters.base,
            adapters.adapters,
            {one.name: adapter.path for one, adapter in zip(wanted, found, strict=True)},
        )
    return [remark for one in adapters.adapters.values() for remark in one.remarks]


def serve_command(folder: Path) -> str:
    """Give the command that serves a bundle."""
    return f"mlflow models serve -m {shlex.quote(str(folder))} --env-manager local --port 5001"
