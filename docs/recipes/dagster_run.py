"""One run for dagster_defs.py: reports to Dagster what it published. Needs bpr-etl and dagster-pipes, not Dagster.

Its settings are environment variables (DATABASE_URL, BPR_ETL_OUT, ...).
"""

from __future__ import annotations

from dagster_pipes import open_dagster_pipes

import bpr_etl

with open_dagster_pipes() as pipes:
    try:
        result = bpr_etl.run(fail_on_change=True)
        for warning in result.warnings:
            pipes.log.warning(warning)
        published = bpr_etl.open_snapshot(result.snapshot).manifest
        triples = sum(published["published"]["triples"].values())
        pipes.report_asset_materialization(
            metadata={"snapshot": result.snapshot, "triples": triples, "positives": published["positives"]},
            data_version=published["content_sha256"],
        )
    except bpr_etl.EtlError as error:
        pipes.report_custom_message({"exit_code": error.exit_code, "message": str(error)})
