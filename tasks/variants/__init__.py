"""Tasks of a set of variants: their plan, the search for the best, the comparison, its report."""
