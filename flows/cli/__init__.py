"""The command line: one file a group of verbs, what they print, and how a process is prepared."""
