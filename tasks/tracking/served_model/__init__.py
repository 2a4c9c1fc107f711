"""The model that MLflow loads and serves: adapters on a base that is found where it is stored.

This package is stored with each logged adapter, and beside it the engine's `siblings.py`. It runs
wherever that is loaded, so it imports nothing else of this project. `adapter_pyfunc.py` has it
imported under another name for each model. So its modules import each other by relative names, and
at their top: once a model is logged, its name is gone.
"""
