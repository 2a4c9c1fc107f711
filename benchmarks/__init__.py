"""Adapterflow beside the tools that people use: the same work, side by side, in one go."""
