"""The public name of bpr-etl: `import bpr_etl` gives the Python API of docs/api.md, and the command `bpr-etl` starts here.

The code is the package `etl`, a name that other projects use too. So it is imported from the folder of this file, whatever
`etl` comes first on `sys.path`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(_FOLDER))
try:
    import etl
finally:
    sys.path.remove(str(_FOLDER))
if _FOLDER / "etl" not in (_found := [Path(each).resolve() for each in getattr(etl, "__path__", [])]):
    raise ImportError(
        f"bpr_etl needs its own package etl, of {_FOLDER}, but another etl is imported already, of "
        f"{', '.join(map(str, _found)) or 'a module'}: import bpr_etl in a process of its own, or rename the other one."
    )

from etl import errors  # noqa: E402, F401 - only now it is known to be ours


def __getattr__(name: str) -> Any:
    return getattr(etl, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(etl)})


def main() -> None:
    """Run the command line; leaves with its exit code."""
    from etl.__main__ import main as command_line  # noqa: PLC0415 - not what `import bpr_etl` is for

    command_line()


if __name__ == "__main__":
    main()
