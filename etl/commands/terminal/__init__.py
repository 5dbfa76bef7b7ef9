"""What a person sees: help, summaries, tables, and the streams that they are written to."""
