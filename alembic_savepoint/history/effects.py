"""The tables that a revision drops, or rebuilds on SQLite; its file is read without being executed."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from alembic_savepoint.history.revisions import Direction, Revision, assignments, parse


@dataclass(frozen=True, slots=True)
class Drop:
    """A dropped table or column; without a table, something that the file does not show.

    The names are those before the function runs, even if it renames them first.
    """

    table: str | None
    column: str | None = None


UNKNOWN = Drop(None)


def drops(revision: Revision, direction: Direction) -> list[Drop]:
    """Return what the function drops of what existed before, as far as the file itself shows.

    Alembic's operations and SQL are recognized, also in functions of the same file; not imported functions, nor `drop`
    of a Table.
    """
    return Effects(revision.source, direction).drops


def rebuilds(revision: Revision, direction: Direction) -> list[str | None]:
    """Return the tables that the function may copy, drop and rename on SQLite (batch mode); None: a computed name.

    Follows `_should_recreate` in alembic/operations/batch.py; where the file does not show it, the answer is yes.
    """
    return Effects(revision.source, direction).rebuilds


@dataclass(frozen=True, slots=True)
class Batch:
    """A table in batch_alter_table, as long as no operation needs a rebuild."""

    table: str | None
    decided: bool
    """`recreate` decides, whatever is done to the table."""


class Effects(ast.NodeVisitor):
    """The effects of a file's upgrade or downgrade on tables, followed from statement to statement."""

    def __init__(self, source: str, direction: Direction) -> None:
        tree = parse(source)
        self.drops: list[Drop] = []
        self.rebuilds: list[str | None] = []
        self.origins: dict[Drop, Drop | None] = {}
        """The earlier name of each renamed table or column; None: it did not exist."""
        self.batches: dict[str, Batch] = {}
        self.following: set[str] = set()
        self.definitions: dict[str, ast.AST] = dict(assignments(tree))
        self.definitions |= {
            node.name: node
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        }
        self.constants = constants(tree)
        if direction in self.definitions:
            try:
                self.follow(direction)
            except RecursionError:  # An expression too deep to be written by hand.
                self.drops, self.rebuilds = [UNKNOWN], [None]
        elif any(isinstance(node, ast.ImportFrom) and imports(node, direction) for node in tree.body):
            self.drops, self.rebuilds = [UNKNOWN], [None]

    def follow(self, name: str) -> None:
        """Continue in the file's definition of this name."""
        if name not in self.following:
            self.following.add(name)
            self.visit(self.definitions[name])
            self.following.remove(name)

    def drop(self, table: str | None, *column: str | None) -> None:
        """Note that it is dropped, unless the function created it."""
        dropped = UNKNOWN if table is None or None in column else self.origin(Drop(table, *column))
        if dropped and dropped not in self.drops:
            self.drops.append(dropped)

    def create(self, table: str | None, *column: str | None) -> None:
        """Note that it did not exist before."""
        if table is not None and None not in column:
            self.origins[Drop(table, *column)] = None

    def rename(self, old: Drop, new: Drop) -> None:
        """Note its earlier name."""
        self.origins[new] = self.origin(old)

    def origin(self, name: Drop) -> Drop | None:
        """Return its name before the function ran; None if it did not exist."""
        if name in self.origins:
            return self.origins[name]
        if name.column is None:
            return name
        table = self.origin(Drop(name.table))
        return table and replace(table, column=name.column)

    def rebuild(self, table: str | None) -> None:
        """Note that it may be rebuilt."""
        if table not in self.rebuilds:
            self.rebuilds.append(table)

    def operate(self, call: ast.Call, batch: Batch | None) -> bool:
        """Follow one of Alembic's operations, without the table's name in a batch; return False for any other."""
        table = batch.table if batch else self.text(call, 0, "table_name")
        column = self.text(call, 0 if batch else 1, "column_name")
        is_new = argument(call, None, "if_not_exists") is None
        match called(call):
            case "drop_table":
                self.drop(table)
            case "drop_column":
                self.drop(table, column)
            case "create_table" if is_new:
                self.create(table)
            case "add_column" if is_new:
                added = argument(call, 0 if batch else 1, "column")
                self.create(table, self.text(added, 0, "name") if isinstance(added, ast.Call) else None)
            case "rename_table":
                self.rename(Drop(self.text(call, 0, "old_table_name")), Drop(self.text(call, 1, "new_table_name")))
            case "alter_column":
                self.rename(Drop(table, column), Drop(table, self.text(call, None, "new_column_name") or column))
            case "batch_alter_table":
                # Not in a `with … as …`, so the operations on the table are elsewhere.
                self.rebuild(table)
            case _:
                return False
        return True

    def text(self, call: ast.Call, position: int | None, name: str) -> str | None:
        """Return the text in an argument; None if it is missing or computed."""
        return self.literal(argument(call, position, name))

    def literal(self, node: ast.expr | None) -> str | None:
        """Return the text of a literal, a constant of the file, or op.f(…); None for anything else."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        if isinstance(node, ast.Name):
            return self.constants.get(node.id)
        if isinstance(node, ast.Call) and called(node) == "f":
            return self.text(node, 0, "name")
        return None

    def visit(self, node: ast.AST) -> None:
        """Follow any node: groups of similar ones together, others by the name of their class."""
        if isinstance(node, BRANCHES):
            self.visit_branches(node)
        elif isinstance(node, ast.Constant | ast.JoinedStr):
            self.visit_text(node)
        else:
            super().visit(node)

    def visit_Call(self, call: ast.Call) -> None:
        """Follow an operation, a function of the file, or any other call."""
        receiver = call.func.value if isinstance(call.func, ast.Attribute) else None
        batch = self.batches.get(receiver.id) if isinstance(receiver, ast.Name) else None
        if batch and not batch.decided and not keeps_the_table(call):
            self.rebuild(batch.table)
        for each in [*call.args, *call.keywords]:
            self.visit(each)
        if not self.operate(call, batch) and not batch:
            self.visit(call.func)

    def visit_With(self, node: ast.With) -> None:
        """Follow batches, each under its name."""
        outside = dict(self.batches)
        for item in node.items:
            call, name = item.context_expr, item.optional_vars
            if isinstance(call, ast.Call) and called(call) == "batch_alter_table" and isinstance(name, ast.Name):
                self.batches[name.id] = self.open_batch(call)
            else:
                self.visit(item)
        for statement in node.body:
            self.visit(statement)
        self.batches = outside

    def open_batch(self, call: ast.Call) -> Batch:
        """Return the batch of a batch_alter_table; note a rebuild that `recreate` demands."""
        table = self.text(call, 0, "table_name")
        recreate = self.text(call, 2, "recreate") if argument(call, 2, "recreate") else "auto"
        if recreate not in ("auto", "never"):
            self.rebuild(table)
        return Batch(table, decided=recreate != "auto")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Note other ways to drop something."""
        if node.attr in OTHER_WAYS:
            self.drop(None)
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        """Follow a name that the file defines or imports, or a batch that is passed on."""
        if node.id in OTHER_WAYS:
            self.drop(None)
        if node.id in self.batches:
            self.rebuild(self.batches[node.id].table)
        elif node.id in self.definitions and isinstance(node.ctx, ast.Load):
            self.follow(node.id)

    def visit_branches(self, node: ast.AST) -> None:
        """Follow branches: what one creates is missing in the other, and may be missing after both."""
        for _, field in ast.iter_fields(node):
            before = dict(self.origins)
            for child in field if isinstance(field, list) else [field]:
                if isinstance(child, ast.AST):
                    self.visit(child)
            self.origins = before

    def visit_Raise(self, node: ast.Raise) -> None:
        """Ignore the text of errors, which is not SQL."""

    def visit_Expr(self, node: ast.Expr) -> None:
        """Follow a statement, except docstrings, which are not SQL."""
        if not isinstance(node.value, ast.Constant):
            self.visit(node.value)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """Follow concatenated texts, or any other operation."""
        if isinstance(node.op, ast.Add):
            self.visit_text(node)
        else:
            self.generic_visit(node)

    def visit_text(self, node: ast.expr) -> None:
        """Read a text that may be SQL; its computed parts are unknown."""
        parts = list(self.parts(node))
        for part in parts:
            if isinstance(part, ast.expr):
                self.visit(part)
        self.read_sql("".join(part if isinstance(part, str) else COMPUTED for part in parts))

    def parts(self, node: ast.expr) -> Iterator[str | ast.expr]:
        """Yield the parts of a text, in order."""
        text = self.literal(node)
        if text is not None or isinstance(node, ast.Constant):
            yield text or ""
        elif isinstance(node, ast.JoinedStr):
            for value in node.values:
                yield from self.parts(value.value if isinstance(value, ast.FormattedValue) else value)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            yield from self.parts(node.left)
            yield from self.parts(node.right)
        else:
            yield node

    def read_sql(self, text: str) -> None:
        """Find what a text drops, creates or renames, if it is SQL."""
        for statement in COMMENT.sub(" ", text).split(";"):
            for found in CREATE_TABLE.finditer(statement):
                self.create(unquote(found["table"]))
            for found in DROP_TABLE.finditer(statement):
                for table in re.split(r"\s*,\s*", found["tables"] or ""):
                    self.drop(unquote(table))
            for found in ALTER_TABLE.finditer(statement):
                self.read_alter_table(unquote(found["table"]), found["actions"])

    def read_alter_table(self, table: str | None, actions: str) -> None:
        """Follow the actions of one ALTER TABLE."""
        for action in actions.split(","):
            if found := ADD_COLUMN.match(action):
                self.create(table, unquote(found["column"]))
            elif found := DROP_COLUMN.match(action):
                self.drop(table, unquote(found["column"]))
            elif found := RENAME.match(action):
                new = unquote(found["new"])
                column = unquote(found["column"])
                self.rename(Drop(table, column), Drop(table, new) if column else Drop(new))
            elif ANY_DROP_COLUMN.search(action):
                self.drop(None)


# Operations that are named without being called, and may be called by another name; and other ways to drop.
OTHER_WAYS = ("drop_table", "drop_column", "drop_all", "DropTable", "DropTableOp", "DropColumnOp")
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.While, ast.Try, ast.TryStar, ast.ExceptHandler, ast.Match, ast.match_case)

COMPUTED = "\0"
IDENTIFIER = r"""(?:"[^"\0]+"|`[^`\0]+`|\[[^]\0]+\]|[A-Za-z_][\w$]*)"""
# The whole name: not the literal beginning of a computed one.
NAME = rf"{IDENTIFIER}(?:\.{IDENTIFIER})*(?![\w$.%{{\0\"`])"
COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
CREATE_TABLE = re.compile(rf"\bCREATE\s+(?:\w+\s+){{0,2}}TABLE\s+(?!IF\b)(?P<table>{NAME})", re.IGNORECASE)
DROP_TABLE = re.compile(rf"\bDROP\s+TABLE\b\s*(?:IF\s+EXISTS\s*)?(?P<tables>{NAME}(?:\s*,\s*{NAME})*)?", re.IGNORECASE)
ALTER_TABLE = re.compile(
    rf"\bALTER\s+TABLE\s+(?:IF\s+EXISTS\s+)?(?:ONLY\s+)?(?P<table>{NAME})?(?P<actions>.*)", re.IGNORECASE | re.DOTALL
)
ADD_COLUMN = re.compile(rf"\s*ADD\s+(?:COLUMN\s+)?(?!IF\b|CONSTRAINT\b)(?P<column>{NAME})", re.IGNORECASE)
DROP_COLUMN = re.compile(
    rf"\s*DROP\s+(?!CONSTRAINT\b)(?:COLUMN\b\s*)?(?:IF\s+EXISTS\s*)?(?P<column>{NAME})?", re.IGNORECASE
)
ANY_DROP_COLUMN = re.compile(r"\bDROP\s+COLUMN\b", re.IGNORECASE)
RENAME = re.compile(rf"\s*RENAME\s+(?:(?:COLUMN\s+)?(?!TO\b)(?P<column>{NAME})\s+)?TO\s+(?P<new>{NAME})", re.IGNORECASE)


def unquote(name: str | None) -> str | None:
    """Return the table or column of a name in SQL, without its schema; None for no name."""
    if not name:
        return None
    last: str = re.findall(IDENTIFIER, name)[-1]
    return last[1:-1] if last[0] in '"`[' else last.lower()


def called(call: ast.Call) -> str:
    """Return the name of the function: `drop_table` in op.drop_table(…)."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def argument(call: ast.Call, position: int | None, name: str) -> ast.expr | None:
    """Return an argument by its name, or by its position unless that is None; None if it is missing."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    return call.args[position] if position is not None and position < len(call.args) else None


def constants(tree: ast.Module) -> dict[str, str]:
    """Return the texts that the file assigns to names, if to no other value as well."""
    nodes = list(ast.walk(tree))
    names = Counter(node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    names.update(node.arg for node in nodes if isinstance(node, ast.arg))
    return {
        name: value.value
        for name, value in assignments(tree).items()
        if isinstance(value, ast.Constant) and isinstance(value.value, str) and names[name] == 1
    }


def imports(node: ast.ImportFrom, name: str) -> bool:
    """Return whether the statement imports this name."""
    return any(name == (alias.asname or alias.name) or alias.name == "*" for alias in node.names)


def keeps_the_table(call: ast.Call) -> bool:
    """Return whether SQLite can do this batch operation without a rebuild (alembic/ddl/sqlite.py)."""
    if called(call) != "add_column":
        return called(call) in ("create_index", "drop_index", "execute", "f", "get_bind", "get_context")
    column = argument(call, 0, "column")
    if not isinstance(column, ast.Call) or len(column.args) > 2:
        return False
    # A constraint, or a default that is an expression, needs one; so may anything computed.
    plain = all(
        keyword.arg in ("name", "type_", "nullable", "index", "comment", "default", "autoincrement")
        or (keyword.arg == "server_default" and isinstance(keyword.value, ast.Constant))
        for keyword in column.keywords
    )
    return plain and not any(
        isinstance(part, ast.Starred)
        or (isinstance(part, ast.keyword) and part.arg == "create_constraint")
        or (isinstance(part, ast.Call) and called(part) in ("ForeignKey", "CheckConstraint", "Computed", "Identity"))
        for part in ast.walk(column)
    )
