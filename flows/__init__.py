"""What can be started: one module per flow, and the command line."""
