"""The comparison of server defaults where Alembic's own fails: a text with an apostrophe."""

import re
from typing import Any

import sqlalchemy as sa


def default_differs(*comparison: Any) -> bool | None:
    """Return whether the database has another default than the model, for `compare_server_default` of Alembic.

    Returns None, for Alembic's own comparison, unless the default is a text with an apostrophe. Alembic does not double
    it: PostgreSQL refuses the comparison, and on SQLite the same change is generated for ever.
    """
    _, _, _, actual, default, _ = comparison
    text = default.arg if isinstance(default, sa.DefaultClause) else None
    if not isinstance(text, str) or "'" not in text or actual is None:
        return None
    doubled = text.replace("'", "''")
    # PostgreSQL adds the type, as in 'it''s'::character varying.
    return re.fullmatch(rf"E?'{re.escape(doubled)}'(::[^']+)?", actual) is None
