"""The `script_location` in alembic.ini: it has the revision files checked before each of Alembic's commands.

Only some commands run env.py: for a broken history, `heads`, `history`, `show` and `merge` would print a traceback.
"""

from alembic_savepoint.history.revisions import VERSIONS, read_history, refuse_broken_history

assert __spec__ is not None
# Before Python 3.12 only a package may stand for its folder.
__spec__.submodule_search_locations = []

refuse_broken_history(read_history(VERSIONS))
