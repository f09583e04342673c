"""The schema: its history, and safe migrations."""
