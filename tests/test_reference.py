"""The reference pages are what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from core import reference, rooms
from core.options import settings

SECTIONS = ("Idea", "Rule", "Source", "Choices", "Effects", "Defaults")


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_page_is_up_to_date(name):
    assert (Path("docs") / name).read_text() == reference.PAGES[name](), "run python -m core.reference"


@pytest.mark.parametrize("name", rooms.interventions())
def test_a_method_card_has_all_its_sections_and_every_setting_its_meaning(name):
    card = reference.inspect.getdoc(reference.inspect.getmodule(rooms.intervention(name)))
    starts = [line.split(" ")[0] for line in card.splitlines() if line[:1].isupper()]
    assert [section for section in SECTIONS if section not in starts] == []
    own = {k: f for k, f in settings(rooms.intervention(name)).items() if k not in ("on", "where", "when")}
    assert [k for k, field in own.items() if not field.metadata.get("help")] == []
