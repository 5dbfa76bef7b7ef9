"""`python -m etl`, and what `bpr_etl.py` calls for the command `bpr-etl`: finds `cli.py` where it ships and calls it."""

from __future__ import annotations

import importlib.util
import sys

from etl.runtime.resources import bundled_cli


def main() -> None:
    """Run the command line; leaves with its exit code."""
    spec = importlib.util.spec_from_file_location("etl._cli", bundled_cli())
    if spec is None or spec.loader is None:  # pragma: no cover - cli.py ships with the package
        raise FileNotFoundError(bundled_cli())
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and typing look for a class's module
    spec.loader.exec_module(module)
    module.main()


if __name__ == "__main__":
    main()
