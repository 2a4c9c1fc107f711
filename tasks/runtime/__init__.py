"""The process around a step: home folder, progress, logs, measurements, addresses, events."""
