"""The journal of what is to be recorded in MLflow, and how it is shipped there."""
