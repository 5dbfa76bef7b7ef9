"""What any long-running program needs: cancellation, executors, run record, logging, progress, resources."""
