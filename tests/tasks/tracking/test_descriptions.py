"""Descriptions and tags in MLflow: ours are replaced by name, and people's own stay."""

from tasks.tracking.descriptions import of_experiment, of_model, with_lines
from tasks.tracking.version_tags import packed, unpacked


def test_a_line_is_replaced_and_what_people_wrote_stays() -> None:
    """Setting a line again leaves one of its name, in its place, among the others."""
    text = with_lines("", {"Data": "`a.jsonl`, 3 rows", "Decision": "open"})
    edited = f"Ask Ada first.\n\n{text}\n\nAnd Bob."
    again = with_lines(edited, {"Decision": "promoted:\n yes \\1"})
    assert again == edited.replace("open", "promoted: yes \\1")
    assert with_lines(again, {"Decision": "promoted:\n yes \\1"}) == again


def test_a_description_of_one_s_own_is_not_overwritten() -> None:
    """An experiment or model that people described keeps their words; ours is renewed."""
    ours = of_experiment("", "first", "- **Data**: a")
    assert of_experiment(ours, "second", "- **Data**: b").endswith("second\n\n- **Data**: b")
    assert of_experiment("All about tickets.", "first", "x") == "All about tickets."
    model = of_model("", 1, "- **Data**: a")
    assert "version 2" in of_model(model, 2, "- **Data**: b")
    assert of_model("Mine.", 2, "x") == "Mine."


def test_tags_come_back_from_their_groups() -> None:
    """What is packed into one tag is read as before, and so are the tags of older versions."""
    tags = {
        "lineage.data_sha256": "ab",
        "lineage.base": "org/model",
        "score.base.loss": "1.5",
        "decision.outcome": "promote",
    }
    stored = packed(tags)
    assert set(stored) == {"lineage", "scores", "decision.outcome"}
    assert unpacked(stored) == unpacked(tags) == tags
    assert unpacked({"lineage": "my own words"}) == {"lineage": "my own words"}
