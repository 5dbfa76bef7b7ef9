"""Writes to the database (COPY, registry, backfill), the audit before COMMIT, and the checks of `validate`."""
