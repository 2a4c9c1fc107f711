"""What surrounds a step in its process: home folder, files, progress, logs, measurements."""
