"""Rows to examples, examples to text, text to tokens."""
