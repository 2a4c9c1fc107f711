"""The steps of a retraining around the six: check, register, evaluate, decide, promote, publish."""
