"""What makes a function a step: persisted results, cache keys, redo, locks, retention, slots."""
