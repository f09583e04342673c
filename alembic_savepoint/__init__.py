"""Save, load, rehearse, check and diagnose the database of any Alembic project."""
