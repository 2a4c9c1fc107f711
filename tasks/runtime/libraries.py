"""Import the libraries that every run needs, and exclude their objects from garbage collection.

They create a million objects that live until the process ends. The garbage collector would traverse
them repeatedly during the imports, in every full collection, and at exit. Measured without it, the
imports take 5.2 s instead of 6.9 s, and the exit takes 0.2 s instead of 2.1 s.
"""

import atexit
import gc
from functools import cache
from importlib import import_module

MODULES = (
    # First: it sets environment variables that torch reads when it is imported.
    "tasks.engine",
    "tasks.engine.training.training",
    "tasks.engine.adapters.loading",
    "mlflow",
    "matplotlib.figure",
)


@cache  # once and early: a model that is alive at a later freeze would never be collected
def import_libraries() -> None:
    """Import what every run imports sooner or later, once per process."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        for name in MODULES:
            import_module(name)
    finally:
        if was_on:
            gc.enable()
    gc.freeze()
    # The interpreter's last collections then find nothing to traverse.
    atexit.register(gc.freeze)
