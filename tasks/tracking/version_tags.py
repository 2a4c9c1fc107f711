"""The tags of a registered version: few for people to read, and what belongs together in one.

Hashes and scores are dozens of values. Each group is one tag of JSON, from which they can be
copied; older versions have a tag for each value. Both are read alike.
"""

import json
from collections.abc import Mapping

OUTCOME_TAG = "decision.outcome"
REASON_TAG = "decision.reason"
OVERRULED_TAG = "decision.overruled"
"""Tag: the decision that a person overruled, in its words."""
REPLACED_TAG = "champion.replaced"
"""Tag: the version that this one replaced as champion."""
PROMOTED_TAG = "champion.since"
"""Tag: when this version became champion."""
ROLLED_BACK_TAG = "champion.rolled_back"
"""Tag: when and why this version was rolled back."""

_GROUPS = {"lineage": "lineage.", "scores": "score.", "serving": "serving."}
"""The one tag of a group, and what the names of its values begin with."""


def packed(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags as MLflow gets them, each group as one tag of JSON."""
    alone = {k: v for k, v in tags.items() if not k.startswith(tuple(_GROUPS.values()))}
    for group, prefix in _GROUPS.items():
        if mine := {k.removeprefix(prefix): v for k, v in tags.items() if k.startswith(prefix)}:
            alone[group] = json.dumps(mine, indent=1, ensure_ascii=False)
    return alone


def unpacked(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags from MLflow with one for each value of a group."""
    found = {key: str(value) for key, value in tags.items()}
    for group, prefix in _GROUPS.items():
        try:
            mine = json.loads(found.get(group, "{}"))
        except ValueError:  # somebody's own tag of that name
            continue
        if isinstance(mine, dict):
            found.pop(group, None)
            found |= {f"{prefix}{key}": str(value) for key, value in mine.items()}
    return found
