"""Where temporary files go: the machine's folder for them, which a container may not have."""

from __future__ import annotations

import tempfile
from pathlib import Path

from etl.errors import SettingsError


def temporary_folder() -> Path:
    """The machine's folder for temporary files. Raises SettingsError where there is none that can be written."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        raise SettingsError(
            "There is no folder for temporary files: none of $TMPDIR, /tmp, /var/tmp and the working folder can be written. "
            "Set TMPDIR to one that can."
        ) from None
