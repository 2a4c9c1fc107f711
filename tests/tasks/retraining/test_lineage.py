"""What a version's tags tell of how it was made."""

from pathlib import Path

import pytest

from tasks.config import BaseModelSettings, Dtype
from tasks.engine.base.base_models import describe_base, load_skeleton
from tasks.engine.base.sources import find_base
from tasks.records import VersionRecord
from tasks.retraining import lineage


@pytest.mark.parametrize(
    ("tags", "is_told"),
    [
        ({}, False),  # of an older adapterflow
        ({lineage.DTYPE: "float32", lineage.QUANTIZATION: "none"}, False),
        ({lineage.DTYPE: "bfloat16", lineage.QUANTIZATION: "none"}, True),
        ({lineage.DTYPE: "float32", lineage.QUANTIZATION: "4bit"}, True),
    ],
)
def test_a_base_that_is_loaded_otherwise_is_told(
    tags: dict[str, str], *, is_told: bool, tiny_base: Path
) -> None:
    """A version that was trained on another type, or on packed weights, is said to be."""
    source = find_base(BaseModelSettings(source=str(tiny_base), dtype=Dtype.FLOAT32))
    version = VersionRecord(
        name="sums", version=1, created_ms=0, run_id=None, source="", aliases=(), tags=tags
    )
    said = lineage.loaded_otherwise(version, describe_base(source, load_skeleton(source)))
    assert bool(said) is is_told
    assert not said or set(tags.values()) <= set(said.replace(",", "").split())
