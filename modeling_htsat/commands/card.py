"""`htsat card`: the README.md of a model, rendered anew from what lies in its folder."""

import argparse
from pathlib import Path

from ..hub.card import CARD_FILE, refresh_card, render_card
from .outputs import OK, report_failures


def add_arguments(parser: argparse.ArgumentParser):
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="DIR", help="folder with a model, or with facts.yaml of a preset")
    add("--name", help="what the card's snippets load, such as a name on the Hub (default: the folder's name)")
    add("--check", action="store_true", help="write nothing; fail where a card is not what would be written")


def run(options: argparse.Namespace) -> int:
    if options.name and len(options.folders) > 1:
        raise ValueError(f"One name was given for {len(options.folders)} folders; name one folder with it.")
    for folder in options.folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder; name one with a model, or with facts.yaml of a preset.")
    if options.check:
        stale = [folder for folder in options.folders if is_stale(folder, options.name)]
        return report_failures(
            [f"{folder / CARD_FILE} is stale; `htsat card {folder}` renders it." for folder in stale]
        )
    for folder in options.folders:
        refresh_card(folder, options.name)
    return OK


def is_stale(folder: Path, name: str | None = None) -> bool:
    """Whether a card is missing, or differs from what its folder's files make."""
    card = folder / CARD_FILE
    return not card.is_file() or card.read_text(encoding="utf-8") != render_card(folder, name)
