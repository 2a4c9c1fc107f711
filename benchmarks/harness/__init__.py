"""What the programs of the folder above share: the base, the rows, processes, tables."""
