"""The license of a base model, as its own model card states it."""

from pathlib import Path

from tasks.records import BaseSource

_FIELDS = ("license", "license_name", "license_link")
"""The fields that the Hub reads; the last two are for the license `other`."""


def license_of(base: BaseSource) -> dict[str, str]:
    """Return the license fields of the base's model card; empty if there are none."""
    from huggingface_hub import ModelCard, try_to_load_from_cache

    if Path(base.location).is_absolute():
        file: object = Path(base.location) / "README.md"
    else:  # downloaded when the base was found
        file = try_to_load_from_cache(base.location, "README.md", revision=base.revision)
    if not isinstance(file, str | Path) or not Path(file).is_file():
        return {}
    card = ModelCard.load(file, ignore_metadata_errors=True)
    given = card.data.to_dict()
    return {name: given[name] for name in _FIELDS if isinstance(given.get(name), str)}
