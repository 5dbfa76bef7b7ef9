"""bpr-etl as a Dagster asset: `dagster dev -f dagster_defs.py`. 3 and 6 are retried, everything else fails at once.

The run is a process of its own (dagster_run.py), in the environment that has bpr-etl; Dagster need not be installed there.
"""

import os
from pathlib import Path

import dagster as dg

PYTHON = os.environ.get("PIPES_PYTHON", "python")
WORTH_A_RETRY = {3, 6}  # the database or the store not reachable, or too busy; another run holds the lock
PAUSE = float(os.environ.get("PIPES_PAUSE", "60"))  # seconds


@dg.asset
def bpr_etl_snapshot(
    context: dg.AssetExecutionContext, pipes_subprocess_client: dg.PipesSubprocessClient
) -> dg.MaterializeResult:
    """The newest snapshot: its location, counts and content hash."""
    script = Path(__file__).with_name("dagster_run.py")
    done = pipes_subprocess_client.run(command=[PYTHON, str(script)], context=context)
    for failed in done.get_custom_messages():
        if failed["exit_code"] in WORTH_A_RETRY:
            raise dg.RetryRequested(max_retries=3, seconds_to_wait=PAUSE)
        raise dg.Failure(f"Exit code {failed['exit_code']}: {failed['message']}", allow_retries=False)
    return done.get_materialize_result()


defs = dg.Definitions(
    assets=[bpr_etl_snapshot],
    schedules=[dg.ScheduleDefinition(name="nightly", target=[bpr_etl_snapshot], cron_schedule="17 3 * * *")],
    resources={"pipes_subprocess_client": dg.PipesSubprocessClient()},
)
