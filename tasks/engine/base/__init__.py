"""Find, load and describe a base model."""
