"""Importing the libraries leaves the collector on, and them out of its way."""

import gc

from tasks.libraries import import_libraries


def test_the_collector_passes_over_the_libraries_alone() -> None:
    """What is made after the first call is collected as ever, also after a second one."""
    import_libraries()
    frozen = gc.get_freeze_count()
    assert frozen > 100_000
    assert gc.isenabled()
    kept = [[] for _ in range(1000)]
    import_libraries()
    assert gc.get_freeze_count() <= frozen
    del kept
