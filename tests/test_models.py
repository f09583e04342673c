"""The one spelling of a username."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st
from precis_i18n import get_profile

from fields import normalise_username

ASCII = st.text(st.characters(max_codepoint=127), min_size=1, max_size=60)


ANY = ASCII | st.text(min_size=1, max_size=60)


def outcome(normalise: Callable[[str], str], username: str) -> str | None:
    """The normalised name, or None where it is refused."""
    try:
        return normalise(username)
    except ValueError:
        return None


@given(ANY)
def test_a_username_is_what_precis_makes_of_it(username: str) -> None:
    precis = get_profile("UsernameCaseMapped").enforce

    assert outcome(normalise_username, username) == outcome(precis, username)


@given(ANY)
def test_a_username_that_was_normalised_stays_as_it_is(username: str) -> None:
    once = outcome(normalise_username, username)

    assert once is None or normalise_username(once) == once
