"""Held-out rows, answers to rows, metrics, and the decision between two models."""
