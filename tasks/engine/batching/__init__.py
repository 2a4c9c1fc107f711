"""Rows into micro-batches, and the loss over one."""
