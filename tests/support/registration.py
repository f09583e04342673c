"""Helpers of the tests of registration."""

from typing import Any

from tests.support.service import Rows


def named(username: str, **fields: Any) -> dict[str, Any]:
    return {"username": username, "email": "someone@example.com", **fields}


def count(rows: Rows) -> tuple[int, int, int]:
    """How many users, profiles and tokens the database holds."""
    users, profiles, tokens = (
        rows(f"SELECT count(*) FROM {table}")[0][0] for table in ("users", "profiles", "access_tokens")
    )
    return users, profiles, tokens


CURSED = {
    "sqlite": """
        CREATE TRIGGER curse BEFORE INSERT ON profiles
        WHEN (SELECT username FROM users WHERE id = NEW.user_id) LIKE 'cursed%'
        BEGIN SELECT RAISE(ABORT, 'cursed'); END
    """,
    "postgresql": """
        CREATE FUNCTION curse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF (SELECT username FROM users WHERE id = NEW.user_id) LIKE 'cursed%' THEN
                RAISE EXCEPTION 'cursed: %', (SELECT email FROM users WHERE id = NEW.user_id);
            END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER curse BEFORE INSERT ON profiles FOR EACH ROW EXECUTE FUNCTION curse()
    """,
}
"""By engine: a trigger that nobody foresees, which refuses the profiles of users whose name begins with "cursed"."""
