"""Prefect around us: the embedded server, up and down, deployments, triggers and alerts."""
