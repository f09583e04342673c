"""Printed commands mean the project that was chosen, and accept nothing by themselves."""

from argparse import Namespace

from alembic.config import Config

from alembic_savepoint.project import Spelling, options_of


def test_a_next_command_repeats_what_chose_the_project_and_no_acceptance() -> None:
    chosen = Namespace(config=["other file.ini"], x=["tenant=a b", "accept-loss=users.fax", "saved=elsewhere"])

    options = options_of(Config("other file.ini", ini_section="second", cmd_opts=chosen))

    assert options == "-c 'other file.ini' -n second -x 'tenant=a b'"
    assert Spelling(options=options).of("alembic upgrade head") == f"alembic {options} upgrade head"
