"""A served model's chat template is tried when the model is loaded, as none can be interrupted."""

import pytest
from tiny_models import CHAT_TEMPLATE, tiny_tokenizer

from tasks.tracking.served_model.template_trial import check_template

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (LOOP, "does not end within 5 s"),
        ("{{ 'x' * 3000000000 }}", "takes more than 1 GB of memory"),
        ("{{ 'x' * 5000000 }}", "writes 5,000,000 characters"),
    ],
)
@pytest.mark.slow
def test_a_template_without_end_is_not_served(template: str, told: str) -> None:
    """A template that takes too much fails the model's loading, not a request."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=told):
        check_template(tokenizer)


def test_a_template_that_ends_is_served() -> None:
    """A template may refuse a conversation; that is the request's business."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    check_template(tokenizer)
    tokenizer.chat_template = CHAT_TEMPLATE
    check_template(tokenizer)
