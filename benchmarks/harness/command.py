"""What the commands of all benchmarks share: their options, how they end after an error, what they print and save."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec

from benchmarks.harness.results import save_results
from etl.errors import EtlError

P = ParamSpec("P")


def command_parser(
    module: str, description: str | None, *, database: bool = False, saves: str = ".json and .md"
) -> argparse.ArgumentParser:
    """Return a parser with `--save`, and for a `database` with `--database-url`. `module` is below `benchmarks`."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=description)
    if database:
        parser.add_argument(
            "--database-url", help="a server where databases may be created (default: the embedded one)"
        )
    result = module.rpartition(".")[2]
    parser.add_argument("--save", action="store_true", help=f"write benchmarks/results/{result}{saves}")
    return parser


def with_exit_codes(main: Callable[P, int]) -> Callable[P, int]:
    """Decorate a main function: an EtlError is printed, and its exit code returned."""

    @wraps(main)
    def called(*arguments: P.args, **options: P.kwargs) -> int:
        try:
            return main(*arguments, **options)
        except EtlError as error:
            print(error, file=sys.stderr)
            return error.exit_code

    return called


def present(name: str, results: Mapping[str, Any], head: str, text: str, *, save: bool) -> int:
    """Print the tables, and save them with the results if asked to. Returns the exit code 0."""
    print(text, end="")
    if save:
        save_results(name, results, head, text)
    return 0
