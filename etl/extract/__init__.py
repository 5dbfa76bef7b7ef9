"""Source tables -> typed frames under one database snapshot. Rows that break a schema are rejected and counted."""
