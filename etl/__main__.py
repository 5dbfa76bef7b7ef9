"""`python -m etl`, and the command `bpr-etl`: finds `cli.py` where it ships and calls it."""

from __future__ import annotations

import importlib.util

from etl.resources import bundled_cli


def main() -> None:
    """Run the command line; leaves with its exit code."""
    spec = importlib.util.spec_from_file_location("etl._cli", bundled_cli())
    if spec is None or spec.loader is None:  # pragma: no cover - cli.py ships with the package
        raise FileNotFoundError(bundled_cli())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()


if __name__ == "__main__":
    main()
