"""Serving by vLLM: its command, and adapters published to it once they are proven there."""
