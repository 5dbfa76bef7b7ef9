"""Source tables -> typed frames, under one database snapshot; rows that break a schema are rejected and counted."""
