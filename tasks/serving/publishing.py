"""Publish a version of the registered model to a server, once it is proven there.

A version is served under a name of its own, such as `tickets-7`, and never under one that had other
weights before. vLLM (0.32) can replace an adapter in place (`load_inplace`), but it finds computed
prefixes by the adapter's name, so that answers may begin with the former weights
(vllm-project/vllm #42125), and requests in flight change weights halfway.
"""

import re
from pathlib import Path
from typing import NamedTuple

from tasks.config import ServingSettings, TrackingSettings
from tasks.config.reading import adapter_here
from tasks.engine.adapters import AdapterFolder, copy_adapter
from tasks.errors import UserError
from tasks.inference.adapters_on_base import found_adapters
from tasks.records import (
    REFERENCE_FILE,
    FileRecord,
    PublishedRecord,
    ServingOutcome,
    ServingReference,
    VersionRecord,
)
from tasks.runtime import home
from tasks.runtime.progress import logger, progress
from tasks.serving import proving
from tasks.serving.server import Server, ServerState
from tasks.serving.vllm_limits import check_servable
from tasks.tracking import (
    Registry,
    is_mlflow_uri,
    pinned_adapter,
    published_at,
    published_to,
    record_publication,
    text_of_run,
    tracking_uri,
)

_VERSION = re.compile(r"models:/(?P<name>[^/@]+)/(?P<version>\d+)")


class Judged(NamedTuple):
    """A version with what was recorded when it was judged."""

    version: VersionRecord
    reference: ServingReference
    others: tuple[VersionRecord, ...]
    """The other versions of the registered model."""

    @property
    def served_as(self) -> str:
        """The version's name on servers."""
        return served_name(self.version)


def served_name(version: VersionRecord) -> str:
    """Return the name by which requests select a version."""
    return f"{version.name}-{version.version}"


def publish(uri: str, settings: ServingSettings, tracking: TrackingSettings) -> PublishedRecord:
    """Load a version into a server, prove it there, and record what came of it.

    If it is not proven, it is unloaded again, unless it was loaded before. If it is, the version
    that was published before stays loaded beside it, for clients that still name it; those before
    that one are unloaded.

    Args:
        uri: the version, `models:/name@alias` or `models:/name/version`.
        settings: the server, and where it finds adapters.
        tracking: which MLflow store.

    Raises:
        UserError: there is no such version, or it was not judged here; vLLM can't serve it; the
            server is no vLLM server, or can't load adapters.
        PassingError: the server or MLflow can't be reached.
    """
    server = Server(str(settings.url))
    judged = find_judged(uri, tracking)
    folder = keep_files(judged.version, settings, tracking)
    state = server.state()
    record = _tried(server, state, judged, folder)
    record_publication(tracking_uri(tracking), judged.version, record)
    if record.outcome is ServingOutcome.PUBLISHED:
        unload_older(server, state, judged)
    return record


def find_judged(uri: str, tracking: TrackingSettings) -> Judged:
    """Find a version in the registry, with what a server has to reproduce.

    Raises:
        UserError: there is no such version, or it was not judged by a retraining.
        PassingError: MLflow can't be reached.
    """
    version, others = find_version(uri, tracking)
    text = text_of_run(version.run_id, REFERENCE_FILE, tracking) if version.run_id else None
    if text is None:
        raise UserError(
            f"{version.uri} has no {REFERENCE_FILE} in its run, with which a server could be "
            "compared: it does not generate text, or was judged by an earlier adapterflow; "
            "retrain it"
        )
    return Judged(version, ServingReference.model_validate_json(text), others)


def find_version(
    uri: str, tracking: TrackingSettings
) -> tuple[VersionRecord, tuple[VersionRecord, ...]]:
    """Find a version in the registry; return it, and the other versions of its model.

    Raises:
        UserError: it is no version of a registered model.
        PassingError: MLflow can't be reached.
    """
    found = is_mlflow_uri(uri) and _VERSION.fullmatch(pinned_adapter(uri, tracking).uri)
    if not found:
        raise UserError(
            f"{uri} is no version of a registered model; give one that `adapterflow retrain` "
            "made, as in models:/tickets@champion"
        )
    versions = Registry(tracking_uri(tracking), found["name"]).versions()
    version = next(one for one in versions if one.version == int(found["version"]))
    return version, tuple(one for one in versions if one is not version)


def keep_files(
    version: VersionRecord, settings: ServingSettings, tracking: TrackingSettings
) -> Path:
    """Put a version's files where the server finds them, and return their folder.

    Raises:
        UserError: vLLM can't serve the adapter, or another one is in that folder.
        PassingError: MLflow can't be reached.
    """
    place = home.home() / Path(settings.folder or "served").expanduser()
    folder = place / served_name(version)
    with found_adapters([adapter_here(version.uri)], tracking.uri) as (adapter,):
        check_servable(adapter)
        if folder.exists():
            _check_same(adapter, folder)
        else:
            try:
                place.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"the server's adapters can't be kept in {place}: {error.strerror}; give "
                    "another folder with serving.folder (--folder)"
                ) from error
            copy_adapter(adapter, folder)
    return folder


def _check_same(adapter: AdapterFolder, folder: Path) -> None:
    there = AdapterFolder(str(folder), folder)
    for ours, theirs in (
        (adapter.weights_file, there.weights_file),
        (adapter.config_file, there.config_file),
    ):
        if not theirs.is_file() or FileRecord.of(ours).sha256 != FileRecord.of(theirs).sha256:
            raise UserError(
                f"{folder} has other files than {adapter.source}, of another store or changed; "
                "give another folder with serving.folder (--folder), or remove it"
            )


def _tried(server: Server, state: ServerState, judged: Judged, folder: Path) -> PublishedRecord:
    """Load a version and prove it; unload it again if that fails."""
    name, reference = judged.served_as, judged.reference
    record = PublishedRecord(
        uri=judged.version.uri,
        served_as=name,
        url=server.url,
        folder=str(folder.parent),
        server=state.version,
        base=state.base,
        outcome=ServingOutcome.PUBLISHED,
        reason="",
    )
    if failure := proving.wrong_base(server, state.base, reference):
        return record.model_copy(update=failure._asdict())
    was_loaded = name in state.adapters
    if not was_loaded:
        server.load(name, str(folder))
    try:
        record = _proven(server, judged, record)
    except BaseException:
        # An error about the connection may be all there is: the first error is the one to tell.
        _try_to_unload(server, name, was_loaded=was_loaded)
        raise
    if record.outcome is not ServingOutcome.PUBLISHED and not was_loaded:
        server.unload(name)
    return record


def _proven(server: Server, judged: Judged, record: PublishedRecord) -> PublishedRecord:
    name, reference = judged.served_as, judged.reference
    if failure := proving.wrong_adapter(server, name, reference):
        return record.model_copy(update=failure._asdict())
    metric = judged.version.tags.get("decision.metric", "exact_match")
    with progress("served answer") as shown:
        total = len(reference.rows)
        shown.at(0, total)
        found = proving.replay(server, name, reference, metric, lambda: shown.add(1, total))
    failure = proving.otherwise(found)
    outcome = failure.outcome if failure else ServingOutcome.PUBLISHED
    return record.model_copy(
        update={
            "outcome": outcome,
            "reason": failure.reason if failure else proving.summary(found),
            "metric": found.metric,
            "judged": found.judged,
            "served": found.served,
            "num_rows": len(found.rows),
            "differing": found.differing,
        }
    )


def _try_to_unload(server: Server, name: str, *, was_loaded: bool) -> None:
    if was_loaded:
        return
    try:
        server.unload(name)
    except Exception as error:  # noqa: BLE001 - beside the error that is being raised
        logger().warning("%s may still be loaded: %s", name, error)


def unload_older(server: Server, state: ServerState, judged: Judged) -> None:
    """Unload the versions that were published here, except the one before the new one."""
    here = [one for one in judged.others if published_to(one) == server.url]
    loaded = [one for one in here if served_name(one) in state.adapters]
    for one in sorted(loaded, key=published_at)[:-1]:
        server.unload(served_name(one))
