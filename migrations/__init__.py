"""The schema: its history, and what makes migrations safe to run."""
