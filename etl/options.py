"""The options of the command line: each is said once, with its help, its panel and its environment variable."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from etl.config import ENVIRONMENT_PREFIX


def _option(flag: str, text: str, panel: str = "Options", **more: Any) -> Any:
    variable = ENVIRONMENT_PREFIX + flag.split("/", maxsplit=1)[0].lstrip("-").upper().replace("-", "_")
    return typer.Option(flag, help=f"{text} [env: {variable}]", rich_help_panel=panel, show_default=False, **more)


_DB, _WHAT, _HOW, _LIMITS = "Database", "What is published", "How it is done", "Limits"
Url = Annotated[
    str | None,
    _option("--database-url", "PostgreSQL or Prisma URL; else DIRECT_URL, DATABASE_URL.", _DB, metavar="URL"),
]
Schema = Annotated[str | None, _option("--schema", "PostgreSQL schema; default: the URL's, else public.", _DB)]
NamingOption = Annotated[
    str | None, _option("--naming", "Table names: auto (default), model or mapped (snake case).", _DB)
]
Prefix = Annotated[str | None, _option("--shadow-prefix", "Start of a shadow user's email; default shadow-.", _DB)]
Domain = Annotated[
    str | None,
    _option("--shadow-domain", "Only addresses of this domain are shadow users'; default: any.", _DB, metavar="DOMAIN"),
]
WaitLock = Annotated[
    bool | None, _option("--wait-lock/--no-wait-lock", "Wait where another run is at work; default: exit 6.", _DB)
]
MaxWait = Annotated[float | None, _option("--max-wait", "For how many seconds --wait-lock waits; default 3600.", _DB)]
ExpectUsers = Annotated[
    str | None,
    _option(
        "--expect-users",
        "Exit 5 unless there are so many shadow users, like 747±5% (or 747+-5%).",
        _LIMITS,
        metavar="N±P%",
    ),
]
MaxShadowShare = Annotated[
    str | None,
    _option(
        "--max-shadow-share", "Exit 5 when a larger share of all users would be shadow users.", _LIMITS, metavar="SHARE"
    ),
]
MaxBad = Annotated[
    str | None,
    _option(
        "--max-bad", "Exit 5 when a larger share of some kind of row was set aside, like 1%.", _LIMITS, metavar="SHARE"
    ),
]
Role = Annotated[
    str | None,
    _option("--role", "Print the GRANTs that this database role needs, instead of the tables.", metavar="NAME"),
]
Seed = Annotated[int | None, _option("--seed", "Seed of ids, ties and latencies; default 0.")]
Out = Annotated[str | None, _option("--out", "Folder that snapshots are published to; default out.", _WHAT)]
AudienceOption = Annotated[str | None, _option("--audience", "Whose events: shadow (default), real or all.", _WHAT)]
Negatives = Annotated[
    list[str] | None,
    _option(
        "--negatives",
        "Where negatives come from: ranking (default), shown, catalog:N or recommended. May be repeated.",
        _WHAT,
    ),
]
Reject = Annotated[
    str | None,
    _option("--reject", "What catalog:N never draws: what the user has seen (default), or the event's own.", _WHAT),
]
CatalogAlpha = Annotated[
    float | None,
    _option("--catalog-alpha", "catalog:N draws in proportion to popularity to this power; default 0, evenly.", _WHAT),
]
Split = Annotated[
    str | None,
    _option("--split", "none (default), last-trip, time:DATE or time:DATE,DATE (train | valid | test).", _WHAT),
]
CityWeight = Annotated[
    list[str] | None,
    _option("--city-weight", 'Weight of a city\'s triples, like "New York=2". May be repeated.', _WHAT),
]
Shuffle = Annotated[
    bool | None, _option("--shuffle/--no-shuffle", "Triples of a partition in a seeded random order.", _WHAT)
]
VocabFrom = Annotated[
    str | None,
    _option(
        "--vocab-from", "Keep the indexes of this snapshot, or of this --out folder's newest.", _WHAT, metavar="FOLDER"
    ),
]
Probe = Annotated[
    bool | None, _option("--probe/--no-probe", "Train a small model on the triples before anything is published.")
]
FailBelow = Annotated[
    float | None, _option("--fail-below", "With the probe: exit 5 when its AUC is below this; nothing is published.")
]
Published = Annotated[
    str | None,
    typer.Argument(help="A snapshot, or an --out folder: its newest.", metavar="SNAPSHOT", show_default=False),
]
MinCatalog = Annotated[
    int | None, _option("--min-catalog", "Fewer eligible nodes make a small catalogue; default 50.", _WHAT)
]
SmallCatalog = Annotated[
    str | None,
    _option("--small-catalog", "A small catalogue's triples: exclude (default), weight or keep.", _WHAT),
]
Ids = Annotated[str | None, _option("--ids", "Ids in triples: string (default), index or both.", _WHAT)]
RowsPerFile = Annotated[int | None, _option("--rows-per-file", "Rows of a part; default 1000000.", _WHAT)]
Buckets = Annotated[
    int | None,
    _option("--buckets", "Cut the work into so many user buckets; default by size. Decides memory, never bytes.", _HOW),
]
Profile = Annotated[bool | None, _option("--profile/--no-profile", "Show rows a second and memory of each step.", _HOW)]
SkipUnchanged = Annotated[
    bool | None,
    _option("--skip-unchanged/--no-skip-unchanged", "Publish nothing, exit 99, when the data are unchanged.", _WHAT),
]
DryRun = Annotated[bool | None, _option("--dry-run/--no-dry-run", "Do it all, then roll back and publish nothing.")]
Json = Annotated[bool | None, _option("--json/--no-json", "One JSON object on stdout; logs go to stderr.")]
Config = Annotated[
    str | None, _option("--config", "Settings file (TOML); options and environment win over it.", metavar="FILE")
]
DataDir = Annotated[str | None, _option("--data-dir", "Data folder of the embedded PostgreSQL.", _DB, metavar="FOLDER")]
Snapshot = Annotated[
    str | None,
    _option("--snapshot", "Look at this snapshot, or the newest of this --out folder, instead.", metavar="FOLDER"),
]
Format = Annotated[str | None, _option("--format", "sql (default) or prisma.")]
Scale = Annotated[float | None, _option("--scale", "Size of the synthetic world; default 1, the design's size.")]
