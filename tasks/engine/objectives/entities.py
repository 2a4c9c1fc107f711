"""Entities in IOB tags: `B-` for the first word of an entity, `I-` for the others, `O` for none.

`B-PER I-PER O B-LOC` has two entities. As in the evaluation script of CoNLL-2003 (Tjong Kim Sang
and De Meulder 2003, https://aclanthology.org/W03-0419), an `I-` tag that does not continue an
entity of its type begins one.
"""

from collections.abc import Sequence

Entity = tuple[str, int, int]
"""Type, index of the first word, index after the last word."""


def names_entities(names: Sequence[str]) -> bool:
    """Return whether tags are in IOB format, with at least one `B-` tag."""
    return any(name.startswith("B-") for name in names) and all(
        name == "O" or name.startswith(("B-", "I-")) for name in names
    )


def entities(tags: Sequence[str]) -> set[Entity]:
    """Return the entities of one row."""
    found: set[Entity] = set()
    kind, first = "", 0
    for place, tag in enumerate([*tags, "O"]):
        continues = kind and tag == f"I-{kind}"
        if kind and not continues:
            found.add((kind, first, place))
        if not continues:
            kind, first = tag[2:] if tag.startswith(("B-", "I-")) else "", place
    return found
