"""Names of metrics for people."""

_NAMES = {
    "exact_match": "exact match",
    "token_f1": "token F1",
    "rouge_l": "ROUGE-L",
    "macro_f1": "macro-F1",
    "entity_f1": "entity F1",
    "json_valid": "valid JSON",
    "field_accuracy": "field accuracy",
}


def metric_title(metric: str) -> str:
    """Return a metric's name as people write it; a user's own metric keeps its name."""
    return _NAMES.get(metric, metric)
