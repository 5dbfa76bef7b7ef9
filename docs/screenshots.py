"""Makes the README's two pictures from real runs: `make screenshots`. The report's picture needs Chromium.

Seven runs on the synthetic world at the design's size, on an embedded PostgreSQL of its own. A few days of trips are added
before each run. The pictures show the terminal output and the report of the last one.
"""

from __future__ import annotations

import fcntl
import os
import pty
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

import psycopg
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

import etl
from etl import load_settings
from etl.pipeline import database
from etl.postgres import embedded

IMAGES = Path(__file__).parent / "images"
RUNS = 7
OPTIONS = {"negatives": "recommended", "split": "last-trip", "probe": True}
COLUMNS_OF_SLOTS = "SELECT column_name FROM information_schema.columns WHERE table_name = 'ItinerarySlot'"
COLUMNS, LINES = 80, 36
"""Width of the terminal, and number of its lines in the picture."""

_BACK, _TEXT, _DIM, _BRIGHT = (23, 27, 34), (225, 230, 238), (120, 132, 150), (255, 255, 255)
_COLOURS = [(236, 112, 99), (88, 190, 130), (226, 178, 92), (110, 168, 236), (190, 140, 226), (92, 196, 200)]
THEME = TerminalTheme(_BACK, _TEXT, [_BACK, *_COLOURS, _TEXT], [_DIM, *_COLOURS, _BRIGHT])
# Rich's own template loads fonts from the network; this one loads nothing.
SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: {char_height}px;
  line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def earlier_runs(url: str, out: Path) -> None:
    """Run the job on a growing database: all runs except the last."""
    database.synth(load_settings({"database_url": url}, {}))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            f"""CREATE TABLE later AS SELECT abs(hashtext("tripId")) % 200 AS run, * FROM "ItinerarySlot"
            WHERE abs(hashtext("tripId")) % 200 < {RUNS - 1}"""
        )
        connection.execute('DELETE FROM "ItinerarySlot" WHERE id IN (SELECT id FROM later)')
        columns = ", ".join(f'"{name}"' for (name,) in connection.execute(COLUMNS_OF_SLOTS))
        for run in range(RUNS - 1):
            etl.run(load_settings({"database_url": url, "out": str(out), **OPTIONS}, {}))
            connection.execute(f'INSERT INTO "ItinerarySlot" ({columns}) SELECT {columns} FROM later WHERE run = {run}')


def terminal_output(url: str, out: Path) -> str:
    """Return what the last run prints in a terminal, with its escape sequences."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 200, COLUMNS, 0, 0))
    command = [Path(sys.executable).parent / "bpr-etl", "run", "--out", str(out), "--probe"]
    command += ["--negatives", "recommended", "--split", "last-trip"]
    environ = {**os.environ, "DATABASE_URL": url, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    run = subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL, env=environ)
    os.close(theirs)
    printed = b""
    try:
        while piece := os.read(ours, 65536):
            printed += piece
    except OSError:  # Linux raises it when the other end of a pty is closed
        pass
    if run.wait():
        raise SystemExit(f"bpr-etl run ended with {run.returncode}")
    return printed.decode().replace("\r\n", "\n")


def terminal_picture(printed: str, out: Path) -> str:
    """Return an SVG of the terminal output. The temporary folder is shown as /srv/bpr."""
    command = "$ bpr-etl run --out /srv/bpr --negatives recommended --split last-trip --probe\n"
    lines = (command + printed.replace(str(out), "/srv/bpr")).splitlines()
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        console.print(Text.from_ansi("\n".join(lines[:LINES])))
        return console.export_svg(title="bpr-etl run", theme=THEME, code_format=SVG, unique_id="bpr-etl")


def report_picture(report: Path, to: Path) -> None:
    """Save the top of the report as a browser shows it at desktop width."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("No Chromium: the report's picture stays as it is.")
        return
    flags = ["--headless=new", "--no-sandbox", "--hide-scrollbars", "--window-size=1280,1150", f"--screenshot={to}"]
    subprocess.run([browser, *flags, report.as_uri()], check=True, capture_output=True)


def main() -> None:
    """Make both pictures."""
    IMAGES.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bpr-shots-"))
    folder.chmod(0o755)
    server = embedded.start(folder / "pg")
    try:
        out = folder / "out"
        earlier_runs(server.url(), out)
        (IMAGES / "terminal.svg").write_text(
            terminal_picture(terminal_output(server.url(), out), out), encoding="utf-8"
        )
        newest = out / "snapshots" / (out / "LATEST").read_text(encoding="utf-8").strip()
        report_picture(newest / "report.html", IMAGES / "report.png")
    finally:
        embedded.stop(folder / "pg")
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
