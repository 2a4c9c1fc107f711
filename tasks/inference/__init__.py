"""Adapters at work: batch answers, export, combination and serving."""
