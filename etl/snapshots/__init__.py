"""Published snapshots: Parquet, manifest, stores, publishing, reading, validation."""
