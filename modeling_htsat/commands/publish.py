"""`htsat publish`: a model folder on the Hub, where others load it without this package."""

import argparse
import sys
from pathlib import Path

from ..hub.publish import publish
from .outputs import OK


def add_arguments(parser: argparse.ArgumentParser):
    add = parser.add_argument
    add("folder", type=Path, help="a model folder: weights, config.json and preprocessor_config.json")
    add("repo_id", metavar="REPO", help="the name on the Hub: NAME or ORGANISATION/NAME; made if there is none")
    add("--private", action="store_true", help="make a new repository private")
    add("--revision", metavar="BRANCH", help="the branch to change; made if there is none (default: main)")
    add("--create-pr", action="store_true", help="propose the change as a pull request")
    add("--message", metavar="TEXT", help="of the commit")
    add("--dry-run", action="store_true", help="check the folder and list what would be uploaded")


def run(options: argparse.Namespace) -> int:
    published = publish(
        options.folder,
        options.repo_id,
        private=options.private or None,  # an organisation may have all its repositories private
        revision=options.revision,
        create_pr=options.create_pr,
        message=options.message,
        dry_run=options.dry_run,
    )
    for name, size in published.sizes.items():
        sys.stdout.write(f"{size:>13,}  {name}\n")
    if published.left_out:
        sys.stderr.write(f"htsat: not for the Hub, and left out: {', '.join(published.left_out)}\n")
    if published.commit is not None:
        sys.stdout.write(f"{published.commit.pr_url or published.commit.commit_url}\n")
    return OK
