"""The documentation site: `make docs`. Neither building nor reading it loads anything from the network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import made  # noqa: E402 - in this folder, which is on sys.path only now

from etl.runtime.resources import __version__  # noqa: E402

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "bpr-etl"
author = "the authors of bpr-etl"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
smartquotes = False  # quoted code is pasted into shells
default_role = "code"  # docstrings write `name`, as in Markdown
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings describe the values; signatures stay short
html_theme = "furo"
html_static_path = ["_static"]
html_js_files, html_css_files = ["copy.js"], ["copy.css"]
html_title = f"bpr-etl {release}"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"footer_icons": []}


def _fill(_app: Sphinx, _page: str, source: list[str]) -> None:
    source[0] = made.fill(source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the hook that fills in generated parts when a page is read. Called by Sphinx."""
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True}
