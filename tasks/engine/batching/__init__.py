"""Collators: rows into micro-batches; the loss over one; the order of rows."""
