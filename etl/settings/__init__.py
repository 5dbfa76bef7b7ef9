"""Settings: option > environment > file > default, parsed once."""
