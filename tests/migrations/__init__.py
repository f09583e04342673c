"""Migrations: every step there and back with rows in the tables, generated scripts, failures, and where they run."""
