"""Short name of `python -m benchmarks.training_value.next_place`."""

from __future__ import annotations

import sys

from benchmarks.training_value.next_place import main

if __name__ == "__main__":
    sys.exit(main())
