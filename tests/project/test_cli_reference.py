"""The page about the command line is what the commands say."""

from __future__ import annotations

from scripts.cli_reference import PAGE, page


def test_the_page_is_what_the_commands_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m scripts.cli_reference`"
