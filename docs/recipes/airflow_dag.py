"""bpr-etl as an Airflow DAG: 99 skips the task, 3 and 6 are retried, everything else fails at once.

A new snapshot updates the asset `bpr_etl_snapshot`: a DAG with `schedule=[SNAPSHOT]` runs when there is one, and only then.
`bpr-etl` must be on the workers' PATH; its settings are environment variables of the workers (DATABASE_URL, BPR_ETL_OUT, ...).
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Asset
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

SNAPSHOT = Asset("bpr_etl_snapshot")
WORTH_A_RETRY = {3, 6}  # the database or the store not reachable, or too busy; another run holds the lock


class BprEtlRun(BashOperator):
    """Runs a command whose exit code says whether a retry may help. A failure shows the last line that it printed.

    With `--json`, that line is a JSON object; warnings in it are logged as warnings.
    """

    def execute(self, context: Any) -> str:
        """Run the command once. The exception type tells Airflow what to do."""
        done = self.subprocess_hook.run_command(["bash", "-c", self.bash_command], env=self.get_env(context))
        if done.exit_code in self.skip_on_exit_code:
            raise AirflowSkipException("Nothing has changed since the last snapshot.")
        if done.exit_code in WORTH_A_RETRY:
            raise AirflowException(f"Exit code {done.exit_code}: {done.output}")
        if done.exit_code:
            raise AirflowFailException(f"Exit code {done.exit_code}: {done.output}")
        result = json.loads(done.output)
        for warning in result["warnings"]:
            self.log.warning("%s", warning)
        for asset in self.outlets:
            context["outlet_events"][asset].extra = {name: result[name] for name in ("snapshot", "run_id", "positives")}
        return str(result["snapshot"])


with DAG(
    "bpr_etl",
    schedule="17 3 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,  # the next run makes up for a missed one
    max_active_runs=1,
    default_args={
        "retries": 3,
        "retry_delay": timedelta(minutes=1),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(minutes=20),
        "execution_timeout": timedelta(hours=2),  # ends it by SIGTERM: nothing is written or published
        # "on_failure_callback": your own notification
    },
):
    BprEtlRun(
        task_id="run",
        bash_command="bpr-etl run --skip-unchanged --fail-on-change --json",
        append_env=True,
        skip_on_exit_code=99,
        outlets=[SNAPSHOT],
    )
