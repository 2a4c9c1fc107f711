"""Step 4: the trainer, its plan, its checkpoints and its arguments."""
