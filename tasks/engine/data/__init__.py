"""Rows to examples, examples to text, text to tokens.

Here belongs what happens to the user's rows before a model sees them: reading, checking, splitting,
rendering, tokenizing, and the token files. Micro-batches are in `tasks.engine.batching`.
"""
