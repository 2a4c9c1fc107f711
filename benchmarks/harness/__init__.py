"""What the benchmark programs share: base, rows, processes, tables."""
