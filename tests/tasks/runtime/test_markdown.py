"""Markdown for pages of 1280 pixels: nothing is so wide that it is cut, and nothing is changed."""

from tasks.runtime.markdown import PAGE_COLUMNS, blocks, breakable, fenced, without_breaks


def test_a_long_path_can_be_broken_and_is_the_same() -> None:
    """A page may break it after each slash; without these places it is the path itself."""
    path = "/data/" + "/".join(["folder"] * 40) + "/adapter_model.safetensors"
    shown = breakable(path)
    assert max(map(len, shown.split("<wbr>"))) < PAGE_COLUMNS
    assert without_breaks(shown).replace("\\", "") == path


def test_long_lines_of_a_block_are_broken_and_no_character_is_lost() -> None:
    """Lines of the text stay lines, and longer ones become several."""
    text = "word " * 60 + "\n  " + "x" * 200 + "\n\nend"
    _, *lines, _ = fenced(text, PAGE_COLUMNS)
    assert max(map(len, lines)) <= PAGE_COLUMNS
    assert "".join(lines) == text.replace("\n", "")
    assert lines[-2:] == ["", "end"]


def test_an_empty_answer_is_said_to_be_empty() -> None:
    """A block without a line would look like a mistake of the page."""
    assert "(empty)" in blocks({"Base": "  "})
