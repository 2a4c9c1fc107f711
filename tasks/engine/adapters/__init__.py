"""Adapters: configure, inject, read, write, save, load, switch, merge and combine.

Here belongs what is done with an adapter's configuration and weights, in a model or in a folder.
Training them is in `tasks.engine.training`.
"""
