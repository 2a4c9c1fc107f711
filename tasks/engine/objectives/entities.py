"""Entities among tagged words, where tags name the beginning and the inside of each.

`B-PER I-PER O B-LOC` has two. As CoNLL's own evaluation reads it (Tjong Kim Sang and De Meulder
2003, section 3), an inside without a beginning of its kind before it begins an entity, too.
"""

from collections.abc import Sequence

Entity = tuple[str, int, int]
"""Kind, first word, and the one after the last."""


def names_entities(names: Sequence[str]) -> bool:
    """Tell whether tags are of this kind."""
    return any(name.startswith("B-") for name in names) and all(
        name == "O" or name.startswith(("B-", "I-")) for name in names
    )


def entities(tags: Sequence[str]) -> set[Entity]:
    """Find the entities of one row."""
    found: set[Entity] = set()
    kind, first = "", 0
    for place, tag in enumerate([*tags, "O"]):
        goes_on = kind and tag == f"I-{kind}"
        if kind and not goes_on:
            found.add((kind, first, place))
        if not goes_on:
            kind, first = tag[2:] if tag.startswith(("B-", "I-")) else "", place
    return found
