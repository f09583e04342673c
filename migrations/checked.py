"""What alembic.ini names as the place of this folder, so that each command of Alembic begins with a look at its files.

Only some commands run env.py: `heads`, `history`, `show` and `merge` would end a broken history in a traceback.
"""

from migrations.revisions import VERSIONS, read_history, refuse_broken_history

assert __spec__ is not None
# Before Python 3.12 only a package may stand for its folder.
__spec__.submodule_search_locations = []

refuse_broken_history(read_history(VERSIONS))
