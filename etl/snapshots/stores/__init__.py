"""Where snapshots lie: a local folder or an object store, its lock, and how a location is opened."""
