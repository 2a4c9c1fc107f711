"""Versions of a registered model as records: made, found by alias, tagged, missed."""

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from tasks.errors import UserError
from tasks.records import Outcome, VersionRecord
from tasks.tracking.adapter_sources import default_store
from tasks.tracking.version_tags import PROMOTED_TAG, REPLACED_TAG, packed, unpacked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_SHOWN_NAMES = 20


class NotPromoted(NamedTuple):
    """Why a version was not promoted."""

    outcome: Outcome
    reason: str


class Promoted(NamedTuple):
    """A promotion by a person."""

    version: VersionRecord
    """As it was before."""
    former: int | None
    """The champion before."""
    reason: str
    """As recorded with the version."""


def create_version(client: "MlflowClient", name: str, source: str, run_id: str | None) -> int:
    """Register a logged model as a new version; return its number."""
    model_id = source.removeprefix("models:/")
    # With a database URI, mlflow 3.17 looks up the model in its default store.
    with default_store(client.tracking_uri):
        made = client.create_model_version(name, source, run_id=run_id, model_id=model_id)
    return int(made.version)


def set_tags(client: "MlflowClient", name: str, version: int, tags: Mapping[str, str]) -> None:
    """Set tags of a version; the last value wins."""
    for key, value in packed(tags).items():
        client.set_model_version_tag(name, str(version), key, value)


def tag_run(client: "MlflowClient", run_id: str | None, tags: Mapping[str, str]) -> None:
    """Set tags of the run that made a version, if it is still there."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return
    try:
        for key, value in tags.items():
            client.set_tag(run_id, key, value)
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise


def no_version(
    client: "MlflowClient", name: str, version: int, versions: Iterable[int], uri: str
) -> NoReturn:
    """Raise the error that there is no such version, which says what there is."""
    if known := ", ".join(map(str, versions)):
        raise UserError(f"{name} has no version {version} in {uri}; versions: {known}")
    others = [one.name for one in client.search_registered_models(max_results=_SHOWN_NAMES)]
    raise UserError(
        f"there is no registered model {name!r} with versions in {uri}; "
        f"registered models: {', '.join(others) or 'none'}"
    )


def record_of(found: "ModelVersion", aliases: Mapping[str, str]) -> VersionRecord:
    """Return a version as a record, with the aliases that mean it."""
    mine = sorted(alias for alias, version in aliases.items() if int(version) == int(found.version))
    return VersionRecord(
        name=found.name,
        version=int(found.version),
        created_ms=int(found.creation_timestamp or 0),
        run_id=found.run_id or None,
        source=str(found.source),
        aliases=tuple(mine),
        tags=unpacked(found.tags),
    )


def holder(versions: Iterable[VersionRecord], alias: str) -> int | None:
    """Return the version that an alias means; None if there is none."""
    return next((one.version for one in versions if alias in one.aliases), None)


def was_champion(version: int, versions: Iterable[VersionRecord]) -> bool:
    """Return whether a version has been champion, by its own tag or that of its successor."""
    return any(
        PROMOTED_TAG in one.tags
        if one.version == version
        else one.tags.get(REPLACED_TAG) == str(version)
        for one in versions
    )


def overtaken(champion: int | None) -> NotPromoted:
    """Return why a version is not promoted that was compared with another champion."""
    what = f"version {champion} became champion" if champion else "the champion was removed"
    return NotPromoted(
        Outcome.OUTDATED,
        f"not promoted: {what} meanwhile, so the comparison is outdated; the next retraining "
        "compares again, even on unchanged data",
    )


def utc_now() -> str:
    """Return the time as text."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
