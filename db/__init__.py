"""The database: engines, and how many calls become few round trips."""
