"""The engine's side of step 4: trainer, plan, checkpoints and arguments."""
