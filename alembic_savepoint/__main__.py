"""`python -m alembic_savepoint` is the command `alembic-savepoint`."""

from alembic_savepoint.commands.main import main

main()
