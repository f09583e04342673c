"""A migration run for real, watched, and undone."""
