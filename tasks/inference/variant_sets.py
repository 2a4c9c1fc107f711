"""A set of variants as adapters to answer with: each row goes to the adapter of its value."""

from pathlib import Path

from pydantic import ValidationError

from tasks.errors import UserError
from tasks.records import VARIANTS_FILE, VariantsRecord


def is_set(folder: Path) -> bool:
    """Return whether a folder is that of a set of variants."""
    return (folder / VARIANTS_FILE).is_file()


def read_set(folder: Path) -> VariantsRecord:
    """Read the manifest of a set.

    Raises:
        UserError: it is missing or malformed.
    """
    file = folder / VARIANTS_FILE
    try:
        return VariantsRecord.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {VARIANTS_FILE}, which a set of variants ends with; resume the set"
        ) from None
    except (OSError, ValidationError) as error:
        raise UserError(f"{file} can't be read as a set of variants; resume the set") from error
