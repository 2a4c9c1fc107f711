"""Evaluation: held-out rows, answers to them, metrics, and the decision they lead to."""
