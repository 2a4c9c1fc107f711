"""All that touches torch, transformers, peft and datasets; imports neither Prefect nor MLflow."""
