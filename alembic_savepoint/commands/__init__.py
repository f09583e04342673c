"""The commands, as `alembic-savepoint`, or mounted in a project's own program."""
