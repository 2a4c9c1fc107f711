"""What a flow is made of: one module a step, their configuration, records, engine and tracking."""
