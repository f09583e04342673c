"""What the models say, and the revisions do not make."""

from collections.abc import Iterator

import sqlalchemy as sa

from alembic_savepoint.doctor.catalog import Schema
from alembic_savepoint.doctor.comparison import (
    ModelsFailed,
    differences,
    generated_by_alembic,
    is_compared,
    schema_of_models,
)
from alembic_savepoint.doctor.diagnosis import Case, Diagnosis, Next
from alembic_savepoint.doctor.objects import tables_in
from alembic_savepoint.doctor.schema_faults import SchemaAtHand
from alembic_savepoint.doctor.scratch import NoScratch
from alembic_savepoint.environment import no_bytecode
from alembic_savepoint.history.applied import is_known, pending_revisions
from alembic_savepoint.terminal import plural

GENERATE = Next('alembic revision --autogenerate -m "…"', "Write the revision that is missing:")


def model_faults(case: Case, schema: SchemaAtHand, connection: sa.Connection) -> Iterator[Diagnosis]:
    """Compare the models with what the revisions make, and at the newest one with the database, as Alembic does."""
    if not schema.project.environment.metadata:
        return
    wanted: Schema = {}
    try:
        with no_bytecode():
            wanted = schema_of_models(schema.place, schema.project)
    except NoScratch as error:
        schema.obstacle = str(error)
    except ModelsFailed as error:
        again = Next("alembic-savepoint check", "When that is fixed, run it again:")
        yield Diagnosis("not-compared", "The models could not be compared.", [f"Why: {error}"], [again])
    made = schema.made_by(case.history.heads) if wanted else None
    undone = differences(tables_in(made), wanted) if made is not None else []
    undone = [each for each in undone if is_compared(each, schema.project.environment.options)]
    if undone:
        why = f"The models and what the revisions make have {plural(len(undone), 'difference')}."
        adds = Next(None, "Add to it what Alembic does not detect, such as CHECK constraints.")
        yield Diagnosis("not-in-revisions", why, list(map(str, undone)), [GENERATE, adds])
    if is_known(case.history, case.applied) and not pending_revisions(case.history, case.applied):
        differs = [*undone, *(differences(schema.actual, made) if made is not None else [])]
        reported = {difference.table for difference in differs}
        generated = [text for table, text in generated_by_alembic(connection, schema.project) if table not in reported]
        if generated:
            why = f"Alembic would generate {plural(len(generated), 'operation')}."
            yield Diagnosis("ungenerated", why, generated, [GENERATE])
    if schema.project.options.require_names:
        yield from unnamed_constraints(wanted)


def unnamed_constraints(wanted: Schema) -> Iterator[Diagnosis]:
    """Diagnose constraints of the models that no revision could drop on both engines."""
    lines = [
        f"{table}: {part.kind} {part.text}"
        for table, parts in sorted(wanted.items())
        for part in sorted(parts, key=lambda part: (part.kind, part.text))
        if not part.is_named
    ]
    if lines:
        names = Next(
            None, "Name each in the model and in a revision. Without a name, no revision drops it on both engines."
        )
        yield Diagnosis("unnamed-constraint", f"{plural(len(lines), 'constraint')} without a name.", lines, [names])
