"""Importing the libraries leaves the collector on, and them out of its way."""

import gc
import weakref

from tasks.runtime.libraries import import_libraries


class Model:
    """Something that refers to itself, as models do."""

    def __init__(self) -> None:
        self.itself = self


def test_the_collector_passes_over_the_libraries_alone() -> None:
    """What is thrown away is collected as ever, though the libraries were asked for once more."""
    import_libraries()
    assert gc.get_freeze_count() > 100_000
    assert gc.isenabled()
    model = Model()
    thrown_away = weakref.ref(model)
    import_libraries()
    del model
    gc.collect()
    assert thrown_away() is None
