"""What every card has to keep: it parses, all its parts have content, and nothing is a placeholder."""

import re

from huggingface_hub import ModelCard


def assert_whole(card: str, headings: list[str]):
    parsed = ModelCard(card)
    data = parsed.data.to_dict()
    assert data["tags"][0] == "hf_mim" and data["library_name"] in ("transformers", "hf_mim")
    assert ("pipeline_tag" in data) == (data["library_name"] == "transformers")
    assert re.findall(r"^## (.+)$", parsed.text, re.MULTILINE) == headings
    for section in re.split(r"^## .+$", parsed.text, flags=re.MULTILINE):
        assert len(section.split()) > 5, section
    assert "None" not in card and "undefined" not in card.lower() and "information needed" not in card.lower()
    assert "\n\n\n" not in card and " \n" not in card and card.count("```") % 2 == 0
    # The rows of a table stand together, and have as many cells as its head.
    for table in re.findall(r"(?:^\|.*\n)+", parsed.text, re.MULTILINE):
        rows = table.splitlines()
        assert re.fullmatch(r"(\|---)+\|", rows[1]) and len(rows) > 2, table
        assert {row.count("|") for row in rows} == {rows[0].count("|")}, table
        assert all(cell.strip() for row in rows[2:] for cell in row.split("|")[1:-1]), table
