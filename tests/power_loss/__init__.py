"""SQLite when the power fails."""
