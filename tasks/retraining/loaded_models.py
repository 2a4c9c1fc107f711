"""Base, champion and challenger as they are compared: on one base in memory."""

from tasks.config import AdapterSettings
from tasks.engine.adapters import AdapterSet
from tasks.engine.base import load_base, tokenizer_of
from tasks.inference.adapters_on_base import found_adapters
from tasks.records import BASE, CHALLENGER, CHAMPION, RunRecord, SavedRecord, VersionRecord


def load_models(saved: SavedRecord, champion: VersionRecord | None, run: RunRecord) -> AdapterSet:
    """Load the base with the challenger and, if there is one, the champion.

    Raises:
        UserError: the champion is gone.
    """
    tokenizer = tokenizer_of(saved.base)
    adapters = AdapterSet(load_base(saved.base), tokenizer, saved.base)
    adapters.load(saved.folder, CHALLENGER)
    if champion:
        wanted = AdapterSettings(source=champion.uri, name=CHAMPION)
        with found_adapters([wanted], run.tracking_uri) as (folder,):
            adapters.load(folder, CHAMPION)
    return adapters


def weights_sha256(adapters: AdapterSet, name: str) -> str:
    """Return what identifies a model's weights: of an adapter its file's, of the base all."""
    return adapters.base.fingerprint if name == BASE else adapters.adapters[name].sha256
