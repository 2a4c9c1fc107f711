"""What makes a function a step: kept records, cache keys, redo, locks, retention, device slots."""
