"""The night as an Airflow DAG: 99 is a skipped task, 3 and 6 are tried again, everything else fails at once.

`bpr-etl` is on the workers' PATH; its settings are environment variables of the workers (DATABASE_URL, BPR_ETL_OUT, ...).
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

WORTH_A_RETRY = {3, 6}  # the database or the store not reachable, or too busy; another run at work


class Night(BashOperator):
    """A command whose exit code says whether a retry may help. What it printed last is what the failure says.

    It is given `--json`, so of a night that went well that is one JSON object: its warnings are logged as such.
    """

    def execute(self, context: Any) -> str:
        """Run it once; what is raised tells Airflow what to do."""
        done = self.subprocess_hook.run_command(["bash", "-c", self.bash_command], env=self.get_env(context))
        if done.exit_code in self.skip_on_exit_code:
            raise AirflowSkipException("Nothing has changed since the last snapshot.")
        if done.exit_code in WORTH_A_RETRY:
            raise AirflowException(f"Exit code {done.exit_code}: {done.output}")
        if done.exit_code:
            raise AirflowFailException(f"Exit code {done.exit_code}: {done.output}")
        night = json.loads(done.output)
        for warning in night["warnings"]:
            self.log.warning("%s", warning)
        return str(night["snapshot"])


with DAG(
    "bpr_etl",
    schedule="17 3 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,  # a night that was missed is made up for by the next
    max_active_runs=1,
    default_args={
        "retries": 3,
        "retry_delay": timedelta(minutes=1),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(minutes=20),
        "execution_timeout": timedelta(hours=2),  # ends it by SIGTERM: nothing is written, nothing published
        # "on_failure_callback": yours, to tell somebody
    },
):
    Night(
        task_id="night",
        bash_command="bpr-etl run --skip-unchanged --fail-on-change --json",
        append_env=True,
        skip_on_exit_code=99,
    )
