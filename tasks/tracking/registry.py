"""The registered model: its versions, and which of them is champion, challenger and previous.

A promotion is one call, which moves the alias `champion`: whoever loads `models:/name@champion`
gets the old version or the new one. What is said before and after it can be said again, so that a
retry ends in the same state. Promotions exclude each other where the store is SQLite; on a server
the check for another champion and the move are two calls, milliseconds apart.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from tasks.errors import AdapterflowError, PassingError, UserError
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
"""The version that was champion before this one."""
PROMOTED_TAG = "champion.since"
ROLLED_BACK_TAG = "champion.rolled_back"
"""When and why this version stopped being champion."""


class NotPromoted(NamedTuple):
    """Why a version did not become champion."""

    outcome: Outcome
    reason: str


class Registry:
    """One registered model in a store."""

    def __init__(self, uri: str, name: str) -> None:
        self.uri = uri
        self.name = name

    def versions(self) -> list[VersionRecord]:
        """Give all versions, the oldest first; none where the model is not registered.

        Raises:
            UserError: MLflow refuses.
            PassingError: it can't be reached.
        """
        with self._client() as client:
            return self._versions(client)

    def register(self, source: str, run_id: str | None, tags: Mapping[str, str]) -> VersionRecord:
        """Make a logged model a version, once however often this is called, and the challenger.

        Args:
            source: the logged model, `models:/m-…`.
            run_id: the MLflow run that it came from.
            tags: of the version.
        """
        from mlflow.exceptions import MlflowException

        with self._client() as client, store_lock(self.uri):
            try:
                client.create_registered_model(self.name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            # By its source, as mlflow 3.17 makes another version each time it is asked.
            found = next((v for v in self._versions(client) if v.source == source), None)
            number = found.version if found else _create(client, self.name, source, run_id)
            for key, value in tags.items():
                client.set_model_version_tag(self.name, str(number), key, value)
            if not found or OUTCOME_TAG not in found.tags:
                client.set_registered_model_alias(self.name, CHALLENGER, str(number))
            return self._version(client, number)

    def tag(self, version: int, tags: Mapping[str, str]) -> None:
        """Set tags of a version; the last value wins."""
        with self._client() as client:
            for key, value in tags.items():
                client.set_model_version_tag(self.name, str(version), key, value)

    def promote(self, version: int, instead_of: int | None) -> NotPromoted | None:
        """Make a version the champion if `instead_of` is it (None: nobody); say why it is not done.

        The former champion becomes `previous`. A call that repeats one that was carried out, or
        that broke off, ends as that one would have: what others did since stays.

        Raises:
            UserError: the version was deleted meanwhile.
        """
        with self._client() as client, store_lock(self.uri):
            versions = {one.version: one for one in self._versions(client)}
            if version not in versions:
                known = ", ".join(map(str, versions)) or "none"
                raise UserError(
                    f"version {version} of {self.name} was deleted in {self.uri} before it could "
                    f"be promoted; versions: {known}; retrain to make another"
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
                    # Before the alias moves, as a rollback goes by it.
                    client.set_model_version_tag(
                        self.name, str(version), REPLACED_TAG, str(champion)
                    )
                client.set_registered_model_alias(self.name, CHAMPION, str(version))
                # A server's aliases know no compare-and-set: see who has it.
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
        """Make an earlier version the champion again; give who was it, and who is it now.

        Args:
            reason: why, kept with the version that is rolled back.
            to: a version that was champion; the one that the champion replaced unless given.

        Raises:
            UserError: there is no champion, or none of that number before it.
        """
        with self._client() as client, store_lock(self.uri):
            versions = {one.version: one for one in self._versions(client)}
            champion = _holder(versions.values(), CHAMPION)
            if champion is None:
                known = ", ".join(map(str, versions)) or "none"
                raise UserError(f"{self.name} has no champion in {self.uri}; versions: {known}")
            target = to or int(versions[champion].tags.get(REPLACED_TAG, 0))
            # Of no other version is it known that it was better than what was there.
            others = [one for one in versions if one != champion]
            possible = [one for one in others if _was_champion(one, versions.values())]
            if target not in possible:
                raise UserError(
                    f"{self.name} can't go back from version {champion} to {target or 'an earlier'}"
                    f"; champions were {', '.join(map(str, possible)) or 'no others'}: name one "
                    "with --to"
                )
            # First, as a rollback that breaks off is then repeated, and does not go back twice.
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
        try:
            yield store_client(self.uri)
        except AdapterflowError:
            raise
        except Exception as error:
            reason = f"MLflow's registry at {self.uri}: {outages.reason(error)}"
            if outages.is_mistake(error):
                raise UserError(reason) from error
            if outages.is_passing(error):
                raise PassingError(reason) from error
            raise


def _create(client: "MlflowClient", name: str, source: str, run_id: str | None) -> int:
    model_id = source.removeprefix("models:/")
    # With a database, mlflow 3.17 looks the model up in its default store.
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
    """Tell whether a version has been champion, as it or one after it says."""
    return any(
        PROMOTED_TAG in one.tags
        if one.version == version
        else one.tags.get(REPLACED_TAG) == str(version)
        for one in versions
    )


def _overtaken(champion: int | None) -> NotPromoted:
    who = f"version {champion} became champion" if champion else "the champion was taken away"
    return NotPromoted(
        Outcome.OUTDATED,
        f"not promoted: meanwhile {who}, and it was not compared with that; the next retraining "
        "will be, also on unchanged data",
    )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
