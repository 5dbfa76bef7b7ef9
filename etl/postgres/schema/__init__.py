"""The schema of a database: what a run needs of it, what is there, and how the two are matched."""
