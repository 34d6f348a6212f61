"""What can be asked of a finished run's networks; the notebooks call it."""
