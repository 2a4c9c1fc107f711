"""The registered model: its versions, and the aliases `champion`, `challenger` and `previous`.

A promotion takes effect by one call, which moves the alias `champion`: loading
`models:/name@champion` gives either the old version or the new one. All other calls are idempotent,
so that a retry ends in the same state. In an SQLite store, promotions exclude each other by a lock;
on a server, the check of the current champion and the move are two calls, milliseconds apart.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from tasks.errors import UserError
from tasks.records import CHALLENGER, CHAMPION, Outcome, VersionRecord
from tasks.tracking.adapter_sources import default_store
from tasks.tracking.offline import outages
from tasks.tracking.store import store_client, store_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PREVIOUS = "previous"

OUTCOME_TAG = "decision.outcome"
REASON_TAG = "decision.reason"
REPLACED_TAG = "champion.replaced"
"""Tag: the version that this one replaced as champion."""
PROMOTED_TAG = "champion.since"
"""Tag: when this version became champion."""
ROLLED_BACK_TAG = "champion.rolled_back"
"""Tag: when and why this version was rolled back."""


class NotPromoted(NamedTuple):
    """Why a version was not promoted."""

    outcome: Outcome
    reason: str


class Registry:
    """One registered model in a store."""

    def __init__(self, uri: str, name: str) -> None:
        self.uri = uri
        self.name = name

    def versions(self) -> list[VersionRecord]:
        """Return all versions, the oldest first; empty if the model is not registered.

        Raises:
            UserError: MLflow refuses the request.
            PassingError: MLflow can't be reached.
        """
        with self._client() as client:
            return self._versions(client)

    def register(self, source: str, run_id: str | None, tags: Mapping[str, str]) -> VersionRecord:
        """Register a logged model as a version and as the challenger; idempotent.

        Args:
            source: the logged model, `models:/m-…`.
            run_id: the MLflow run that logged it.
            tags: the version's tags.
        """
        from mlflow.exceptions import MlflowException

        with self._client() as client, store_lock(self.uri):
            try:
                client.create_registered_model(self.name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            # mlflow 3.17 makes a new version with each call, so look for the source first.
            found = next((v for v in self._versions(client) if v.source == source), None)
            number = found.version if found else _create(client, self.name, source, run_id)
            for key, value in tags.items():
                client.set_model_version_tag(self.name, str(number), key, value)
            # A version that was decided on must not become challenger again in a retry.
            if not found or OUTCOME_TAG not in found.tags:
                client.set_registered_model_alias(self.name, CHALLENGER, str(number))
            return self._version(client, number)

    def tag(self, version: int, tags: Mapping[str, str]) -> None:
        """Set tags of a version; the last value wins."""
        with self._client() as client:
            for key, value in tags.items():
                client.set_model_version_tag(self.name, str(version), key, value)

    def promote(self, version: int, instead_of: int | None) -> NotPromoted | None:
        """Make a version the champion, if the champion is `instead_of` (None: there is none).

        The former champion becomes `previous`. Repeating a call, also an interrupted one, ends in
        the same state, and does not undo what others have done since.

        Returns:
            Why the version was not promoted; None if it was.

        Raises:
            UserError: the version was deleted meanwhile.
        """
        with self._client() as client, store_lock(self.uri):
            versions = {one.version: one for one in self._versions(client)}
            if version not in versions:
                known = ", ".join(map(str, versions)) or "none"
                raise UserError(
                    f"version {version} of {self.name} was deleted in {self.uri} before it could "
                    f"be promoted; versions: {known}; retrain to make a new one"
                )
            mine = versions[version]
            if back := mine.tags.get(ROLLED_BACK_TAG):
                reason = f"rejected: it was champion and was rolled back, {back}"
                return NotPromoted(Outcome.REJECT, reason)
            champion = _holder(versions.values(), CHAMPION)
            if version != champion and not _was_champion(version, versions.values()):
                if champion != instead_of:
                    return _overtaken(champion)
                if champion is not None:
                    # Before the alias moves, as a rollback depends on this tag.
                    client.set_model_version_tag(
                        self.name, str(version), REPLACED_TAG, str(champion)
                    )
                client.set_registered_model_alias(self.name, CHAMPION, str(version))
                # MLflow has no compare-and-set for aliases, so check who has it now.
                now = _holder(self._versions(client), CHAMPION)
                if now != version:
                    return _overtaken(now)
                champion = version
            if PROMOTED_TAG not in mine.tags:
                client.set_model_version_tag(self.name, str(version), PROMOTED_TAG, _now())
            if champion == version and instead_of in versions:
                client.set_registered_model_alias(self.name, PREVIOUS, str(instead_of))
            if _holder(versions.values(), CHALLENGER) == version:
                client.delete_registered_model_alias(self.name, CHALLENGER)
            return None

    def roll_back(self, reason: str, to: int | None = None) -> tuple[int, int]:
        """Make a former champion the champion again; return the old champion and the new one.

        Args:
            reason: why, recorded in a tag of the version that is rolled back.
            to: a former champion; by default the one that the current champion replaced.

        Raises:
            UserError: there is no champion, or `to` has never been champion.
        """
        with self._client() as client, store_lock(self.uri):
            versions = {one.version: one for one in self._versions(client)}
            champion = _holder(versions.values(), CHAMPION)
            if champion is None:
                known = ", ".join(map(str, versions)) or "none"
                raise UserError(f"{self.name} has no champion in {self.uri}; versions: {known}")
            target = to or int(versions[champion].tags.get(REPLACED_TAG, 0))
            # Only former champions have been found better than the version before them.
            others = [one for one in versions if one != champion]
            possible = [one for one in others if _was_champion(one, versions.values())]
            if target not in possible:
                raise UserError(
                    f"{self.name} can't be rolled back from version {champion} to "
                    f"{target or 'an earlier one'}; former champions: "
                    f"{', '.join(map(str, possible)) or 'none'}; give one of them with --to"
                )
            # The tag comes first: an interrupted rollback is then repeated, and not rolled back
            # twice.
            client.set_model_version_tag(
                self.name, str(champion), ROLLED_BACK_TAG, f"{_now()} to {target}: {reason}"
            )
            client.set_registered_model_alias(self.name, CHAMPION, str(target))
            if ROLLED_BACK_TAG in versions[target].tags:
                client.delete_model_version_tag(self.name, str(target), ROLLED_BACK_TAG)
            before = int(versions[target].tags.get(REPLACED_TAG, 0))
            if before in versions:
                client.set_registered_model_alias(self.name, PREVIOUS, str(before))
            elif _holder(versions.values(), PREVIOUS) is not None:
                client.delete_registered_model_alias(self.name, PREVIOUS)
            return champion, target

    def _versions(self, client: "MlflowClient") -> list[VersionRecord]:
        from mlflow.exceptions import MlflowException

        try:
            aliases = client.get_registered_model(self.name).aliases
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return []
            raise
        found: list[ModelVersion] = []
        token = None
        while True:
            page = client.search_model_versions(f"name = '{self.name}'", page_token=token)
            found += page
            token = page.token
            if not token:
                break
        records = [_record(one, aliases) for one in found]
        return sorted(records, key=lambda one: one.version)

    def _version(self, client: "MlflowClient", number: int) -> VersionRecord:
        return next(one for one in self._versions(client) if one.version == number)

    @contextmanager
    def _client(self) -> Iterator["MlflowClient"]:
        with outages.explained(f"MLflow's registry at {self.uri}"):
            yield store_client(self.uri)


def _create(client: "MlflowClient", name: str, source: str, run_id: str | None) -> int:
    model_id = source.removeprefix("models:/")
    # With a database URI, mlflow 3.17 looks up the model in its default store.
    with default_store(client.tracking_uri):
        made = client.create_model_version(name, source, run_id=run_id, model_id=model_id)
    return int(made.version)


def _record(found: "ModelVersion", aliases: Mapping[str, str]) -> VersionRecord:
    mine = sorted(alias for alias, version in aliases.items() if int(version) == int(found.version))
    return VersionRecord(
        name=found.name,
        version=int(found.version),
        created_ms=int(found.creation_timestamp or 0),
        run_id=found.run_id or None,
        source=str(found.source),
        aliases=tuple(mine),
        tags={key: str(value) for key, value in found.tags.items()},
    )


def _holder(versions: Iterable[VersionRecord], alias: str) -> int | None:
    return next((one.version for one in versions if alias in one.aliases), None)


def _was_champion(version: int, versions: Iterable[VersionRecord]) -> bool:
    """Return whether a version has been champion, by its own tag or that of its successor."""
    return any(
        PROMOTED_TAG in one.tags
        if one.version == version
        else one.tags.get(REPLACED_TAG) == str(version)
        for one in versions
    )


def _overtaken(champion: int | None) -> NotPromoted:
    what = f"version {champion} became champion" if champion else "the champion was removed"
    return NotPromoted(
        Outcome.OUTDATED,
        f"not promoted: {what} meanwhile, so the comparison is outdated; the next retraining "
        "compares again, even on unchanged data",
    )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
