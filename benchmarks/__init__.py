"""Benchmarks: adapterflow and other tools on the same work, side by side."""
