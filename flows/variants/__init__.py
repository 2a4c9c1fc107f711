"""Many trainings as flow runs of their own: created once, executed in some place, and found again.

A variant is a run of the flow `train-adapter`. Whatever executes it, its records are its own, so
that it resumes where it was interrupted.
"""
