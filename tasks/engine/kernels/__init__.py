"""What is computed faster than upstream does it, each with a test that the result is exact.

Here belong replacements of a model's or PEFT's `forward` that are put in place for a while, as
context managers, and leave modules and weights as they are.
"""
