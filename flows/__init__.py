"""What can be run: one module a flow, and the command line."""
