"""Bundle adapters for a server, verified to share one base."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from tasks.config import AdapterSettings
from tasks.inference.adapters_on_base import base_of, found_adapters, load_adapters
from tasks.tracking import write_bundle


def bundle_adapters(
    wanted: Sequence[AdapterSettings], folder: Path, base_model: str | None
) -> Sequence[str]:
    """Write adapters as one MLflow model, after loading all of them on one base as a check.

    Args:
        wanted: the adapters; the first answers requests that name none.
        folder: the model's folder, which must not exist yet.
        base_model: their base, if not the one that the first names.

    Returns:
        Warnings about what could not be checked.

    Raises:
        UserError: an adapter does not exist, or does not fit the first one's base.
    """
    with found_adapters(wanted) as found:
        adapters = load_adapters(base_of(found[0], base_model), wanted, found)
        write_bundle(
            folder,
            adapters.base,
            adapters.adapters,
            {one.name: adapter.path for one, adapter in zip(wanted, found, strict=True)},
        )
    return [text for one in adapters.adapters.values() for text in one.warnings]


def serve_command(folder: Path) -> str:
    """Return the command that serves a bundle."""
    model = shlex.quote(str(folder))
    return (
        f"MLFLOW_DISABLE_TELEMETRY=true mlflow models serve -m {model} --env-manager local "
        "--port 5001"
    )
