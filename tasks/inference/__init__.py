"""What is done with saved adapters: batch inference, export, combination and serving."""
