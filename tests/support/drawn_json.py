"""Valid JSON objects with one thing wrong, drawn by hypothesis."""

import copy
from typing import Any

from hypothesis import strategies as st

EXTREMES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 10**6, 10**12, -(10**12), 10**400),
    *(0.0, -0.5, 1.5, 1e308, float("inf"), float("nan")),
    *("", "a", "zelu", "../x", "\ud800", "\0", "x" * 10_000),
    *([], [None], [1], ["a"], [[]], {}, {"a": None}, {"": {}}),
)
"""Values of each kind, among them those that are rarely thought of."""


def spoiled(valid: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return objects like a valid one with a key dropped, or another value, anywhere in it."""
    paths = list(_paths(valid))
    changes = st.tuples(
        st.sampled_from(paths), st.one_of(st.just(_DROP), st.sampled_from(EXTREMES))
    )
    return st.lists(changes, min_size=1, max_size=2).map(lambda some: _changed(valid, some))


_DROP = object()


def _paths(given: Any, path: tuple[Any, ...] = ()) -> Any:  # noqa: ANN401
    inner = given.items() if isinstance(given, dict) else enumerate(given)
    for key, value in inner:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from _paths(value, (*path, key))


def _changed(valid: dict[str, Any], changes: list[tuple[tuple[Any, ...], Any]]) -> dict[str, Any]:
    made = copy.deepcopy(valid)
    for (*parents, last), value in changes:
        holder: Any = made
        try:
            for key in parents:
                holder = holder[key]
            if value is _DROP:
                del holder[last]
            else:
                holder[last] = value
        except (KeyError, IndexError, TypeError):  # an earlier change has taken the place away
            continue
    return made
