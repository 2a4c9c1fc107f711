"""The tasks of the retraining loop: check, register, evaluate, decide, promote, publish."""
