"""A Hub id is distinguished from other names by one check, everywhere."""

import pydantic
import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from tasks.config import BaseModelSettings, OutputSettings
from tasks.config.hub_ids import is_hub_id

NAMES = [
    "org/name",
    "a/b",
    "Org_1/my-name.v2",
    f"org/{'n' * 96}",
    f"org/{'n' * 97}",
    "org/two words",
    "org/a--b",
    "org/a..b",
    "org/name.git",
    "-org/name",
    "./name",
    "~/name",
    "org/name.",
    "org/näme!",
    "org/name\n",
]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_check_of_the_hubs_client(name: str) -> None:
    """Ours accepts of all `org/name` exactly what huggingface_hub does."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        assert not is_hub_id(name)
    else:
        assert is_hub_id(name)


@pytest.mark.parametrize("name", ["https://huggingface.co/org/name", "name", "org/a--b"])
def test_settings_that_name_a_repository_are_checked(name: str) -> None:
    """What the Hub would refuse after the training is refused before it."""
    with pytest.raises(pydantic.ValidationError):
        OutputSettings(push_to_hub=name)
    with pytest.raises(pydantic.ValidationError):
        BaseModelSettings(source="base", hub_id=name)


@pytest.mark.parametrize("name", ["name", "a/b/c", "models:/name", ""])
def test_a_name_without_organisation_is_none(name: str) -> None:
    """Only `org/name` counts: a single word is a folder's or a package's name as well."""
    assert not is_hub_id(name)
