"""The command ``selftest``; light, since whatever shows help imports it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from mapsage_kaggle.outside import visible_json


def add_selftest(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="(selftest.json, in the output folder or here)"
    )
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="only this; repeatable")
    parser.add_argument("--limit", metavar="TIME", help="how long it may take (5m, with a GPU 10m)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def selftest(arguments: argparse.Namespace) -> int:
    """Run it, and return its exit code; with ``--json`` its progress goes to standard error."""
    from contextlib import redirect_stdout

    from mapsage_kaggle.notebook import selftest as cell

    with redirect_stdout(sys.stderr if arguments.json else sys.stdout):
        test = cell.selftest(only=arguments.only, limit=arguments.limit, out=arguments.out)
    if arguments.json:
        sys.stdout.write(visible_json(json.dumps(test.to_json(), indent=2, ensure_ascii=False)) + "\n")
    return test.exit_code
