"""The registered model: its versions, and the aliases `champion`, `challenger` and `previous`.

A promotion takes effect by one call, which moves the alias `champion`: loading
`models:/name@champion` gives either the old version or the new one. All other calls are idempotent,
so that a retry ends in the same state. In an SQLite store, promotions exclude each other by a lock;
on a server, the check of the current champion and the move are two calls, milliseconds apart.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tasks.errors import UserError
from tasks.records import CHALLENGER, CHAMPION, Outcome, VersionRecord
from tasks.tracking import descriptions
from tasks.tracking.offline import outages
from tasks.tracking.registered_versions import (
    NotPromoted,
    Promoted,
    create_version,
    holder,
    no_version,
    overtaken,
    record_of,
    set_tags,
    tag_run,
    utc_now,
    was_champion,
)
from tasks.tracking.store import store_client, store_lock
from tasks.tracking.version_tags import (
    OUTCOME_TAG,
    OVERRULED_TAG,
    PROMOTED_TAG,
    REASON_TAG,
    REPLACED_TAG,
    ROLLED_BACK_TAG,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PREVIOUS = "previous"


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
            number = found.version if found else create_version(client, self.name, source, run_id)
            set_tags(client, self.name, number, tags)
            # A version that was decided on must not become challenger again in a retry.
            if not found or OUTCOME_TAG not in found.tags:
                client.set_registered_model_alias(self.name, CHALLENGER, str(number))
            return self._version(client, number)

    def tag(self, version: int, tags: Mapping[str, str]) -> None:
        """Set tags of a version; the last value wins."""
        with self._client() as client:
            set_tags(client, self.name, version, tags)

    def describe(self, version: int, lines: Mapping[str, str]) -> None:
        """Set lines of a version's description, and make the model's from its champion's."""
        with self._client() as client, store_lock(self.uri):
            before = client.get_model_version(self.name, str(version)).description or ""
            after = descriptions.with_lines(before, lines)
            client.update_model_version(self.name, str(version), after)
            self._describe_model(client)

    def withdraw(self, version: int) -> None:
        """Make a version the challenger no longer, if it is."""
        with self._client() as client, store_lock(self.uri):
            if holder(self._versions(client), CHALLENGER) == version:
                client.delete_registered_model_alias(self.name, CHALLENGER)

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
            champion = holder(versions.values(), CHAMPION)
            if version != champion and not was_champion(version, versions.values()):
                if champion != instead_of:
                    return overtaken(champion)
                if champion is not None:
                    # Before the alias moves, as a rollback depends on this tag.
                    client.set_model_version_tag(
                        self.name, str(version), REPLACED_TAG, str(champion)
                    )
                client.set_registered_model_alias(self.name, CHAMPION, str(version))
                # MLflow has no compare-and-set for aliases, so check who has it now.
                now = holder(self._versions(client), CHAMPION)
                if now != version:
                    return overtaken(now)
                champion = version
            if PROMOTED_TAG not in mine.tags:
                client.set_model_version_tag(self.name, str(version), PROMOTED_TAG, utc_now())
            if champion == version and instead_of in versions:
                client.set_registered_model_alias(self.name, PREVIOUS, str(instead_of))
            if holder(versions.values(), CHALLENGER) == version:
                client.delete_registered_model_alias(self.name, CHALLENGER)
            return None

    def promote_by_hand(self, version: int, reason: str, who: str) -> Promoted | None:
        """Make any version the champion because a person says so, whatever was decided on it.

        It is recorded as a promotion by a decision is, with the decision that it overrules.

        Args:
            version: the version.
            reason: why, for its tags and its description.
            who: the person.

        Returns:
            What was done; None if the version is champion already.

        Raises:
            UserError: there is no such model, or no such version.
        """
        with self._client() as client, store_lock(self.uri):
            versions = {one.version: one for one in self._versions(client)}
            mine = versions.get(version) or no_version(
                client, self.name, version, versions, self.uri
            )
            champion = holder(versions.values(), CHAMPION)
            if champion == version:
                return None
            given = f"promoted by {who}: {reason}"
            tags = {OUTCOME_TAG: Outcome.PROMOTE.value, REASON_TAG: given, PROMOTED_TAG: utc_now()}
            if (before := mine.tags.get(REASON_TAG)) and before != given:
                tags[OVERRULED_TAG] = before
            if champion is not None:
                tags[REPLACED_TAG] = str(champion)
            # Before the alias moves, as a rollback depends on these.
            set_tags(client, self.name, version, tags)
            client.set_registered_model_alias(self.name, CHAMPION, str(version))
            if champion is not None:
                client.set_registered_model_alias(self.name, PREVIOUS, str(champion))
            if ROLLED_BACK_TAG in mine.tags:
                client.delete_model_version_tag(self.name, str(version), ROLLED_BACK_TAG)
            if CHALLENGER in mine.aliases:
                client.delete_registered_model_alias(self.name, CHALLENGER)
            tag_run(client, mine.run_id, {OUTCOME_TAG: tags[OUTCOME_TAG], REASON_TAG: given})
        self.describe(version, {"Decision": given})
        return Promoted(mine, champion, given)

    def why_champion(self, version: int) -> str | None:
        """Return the reason recorded with a version if it is the champion now, else None."""
        found = next((one for one in self.versions() if one.version == version), None)
        return found.tags.get(REASON_TAG) if found and CHAMPION in found.aliases else None

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
            champion = holder(versions.values(), CHAMPION)
            if champion is None:
                known = ", ".join(map(str, versions)) or "none"
                raise UserError(f"{self.name} has no champion in {self.uri}; versions: {known}")
            target = to or int(versions[champion].tags.get(REPLACED_TAG, 0))
            # Only former champions have been found better than the version before them.
            others = [one for one in versions if one != champion]
            possible = [one for one in others if was_champion(one, versions.values())]
            if target not in possible:
                raise UserError(
                    f"{self.name} can't be rolled back from version {champion} to "
                    f"{target or 'an earlier one'}; former champions: "
                    f"{', '.join(map(str, possible)) or 'none'}; give one of them with --to"
                )
            # The tag comes first: an interrupted rollback is then repeated, and not rolled back
            # twice.
            client.set_model_version_tag(
                self.name, str(champion), ROLLED_BACK_TAG, f"{utc_now()} to {target}: {reason}"
            )
            client.set_registered_model_alias(self.name, CHAMPION, str(target))
            if ROLLED_BACK_TAG in versions[target].tags:
                client.delete_model_version_tag(self.name, str(target), ROLLED_BACK_TAG)
            before = int(versions[target].tags.get(REPLACED_TAG, 0))
            if before in versions:
                client.set_registered_model_alias(self.name, PREVIOUS, str(before))
            elif holder(versions.values(), PREVIOUS) is not None:
                client.delete_registered_model_alias(self.name, PREVIOUS)
            self._describe_model(client)
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
        records = [record_of(one, aliases) for one in found]
        return sorted(records, key=lambda one: one.version)

    def _describe_model(self, client: "MlflowClient") -> None:
        champion = holder(self._versions(client), CHAMPION)
        of_version = ""
        if champion is not None:
            of_version = client.get_model_version(self.name, str(champion)).description or ""
        now = client.get_registered_model(self.name).description or ""
        text = descriptions.of_model(now, champion, of_version)
        if text != now:
            client.update_registered_model(self.name, text)

    def _version(self, client: "MlflowClient", number: int) -> VersionRecord:
        return next(one for one in self._versions(client) if one.version == number)

    @contextmanager
    def _client(self) -> Iterator["MlflowClient"]:
        with outages.explained(f"MLflow's registry at {self.uri}"):
            yield store_client(self.uri)
