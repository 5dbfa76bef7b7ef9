"""Measurements of the job on data that nobody invented, and at sizes that tests don't reach."""
