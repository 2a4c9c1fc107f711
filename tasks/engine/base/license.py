"""The licence that a base comes under, as its own model card says."""

from pathlib import Path

from tasks.records import BaseSource

_FIELDS = ("license", "license_name", "license_link")
"""What the Hub reads; the last two where the licence is `other`."""


def license_of(base: BaseSource) -> dict[str, str]:
    """Give the card's fields that tell the licence; empty where none is told."""
    from huggingface_hub import ModelCard, try_to_load_from_cache

    if Path(base.location).is_absolute():
        file: object = Path(base.location) / "README.md"
    else:  # it came along when the base was looked up
        file = try_to_load_from_cache(base.location, "README.md", revision=base.revision)
    if not isinstance(file, str | Path) or not Path(file).is_file():
        return {}
    card = ModelCard.load(file, ignore_metadata_errors=True)
    given = card.data.to_dict()
    return {name: given[name] for name in _FIELDS if isinstance(given.get(name), str)}
