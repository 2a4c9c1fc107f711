"""The journal of operations for MLflow, and their shipping, which survive outages."""
