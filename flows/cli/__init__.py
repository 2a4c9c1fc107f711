"""The command line: one file per group of commands, their output, and how a process is prepared."""
