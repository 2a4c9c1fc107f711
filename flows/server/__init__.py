"""Prefect around the flows: the embedded server, up and down, deployments, triggers and alerts."""
