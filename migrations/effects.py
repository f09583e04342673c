"""What a revision does to tables: which it drops, and which it rebuilds on SQLite; read without being executed."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from migrations.revisions import Direction, Revision, assignments, parse


@dataclass(frozen=True, slots=True)
class Drop:
    """A table that is dropped, or one of its columns; without a table: something is, and cannot be told from the file.

    The names are those that they have before the function runs, even if it renames them first.
    """

    table: str | None
    column: str | None = None


UNTOLD = Drop(None)


def drops(revision: Revision, direction: Direction) -> list[Drop]:
    """What the function drops of what was there before it, as far as the file itself tells.

    Seen are Alembic's operations and SQL, also in functions of the same file; not what imported functions or a Table's
    own `drop` do.
    """
    return Effects(revision.source, direction).drops


def rebuilds(revision: Revision, direction: Direction) -> list[str | None]:
    """The tables that the function may copy, drop and rename on SQLite (Alembic's batch mode); None: a computed name.

    As `_should_recreate` in alembic/operations/batch.py decides, and where the file does not tell: yes.
    """
    return Effects(revision.source, direction).rebuilds


@dataclass(frozen=True, slots=True)
class Batch:
    """A table under batch_alter_table, as long as what was done to it needs no rebuild."""

    table: str | None
    decided: bool
    """Whether `recreate` says it, whatever is done to the table."""


class Effects(ast.NodeVisitor):
    """What the upgrade or downgrade of a file does to tables, followed from statement to statement."""

    def __init__(self, source: str, direction: Direction) -> None:
        tree = parse(source)
        self.drops: list[Drop] = []
        self.rebuilds: list[str | None] = []
        self.origins: dict[Drop, Drop | None] = {}
        """What is now called so was called that before; None: it was not there."""
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
            except RecursionError:  # An expression that is as deep as no person writes it.
                self.drops, self.rebuilds = [UNTOLD], [None]
        elif any(isinstance(node, ast.ImportFrom) and imports(node, direction) for node in tree.body):
            self.drops, self.rebuilds = [UNTOLD], [None]

    def follow(self, name: str) -> None:
        """Go on in what the file defines by this name."""
        if name not in self.following:
            self.following.add(name)
            self.visit(self.definitions[name])
            self.following.remove(name)

    def drop(self, table: str | None, *column: str | None) -> None:
        """Note that it is dropped, unless the function made it."""
        dropped = UNTOLD if table is None or None in column else self.origin(Drop(table, *column))
        if dropped and dropped not in self.drops:
            self.drops.append(dropped)

    def create(self, table: str | None, *column: str | None) -> None:
        """Note that it was not there before."""
        if table is not None and None not in column:
            self.origins[Drop(table, *column)] = None

    def rename(self, old: Drop, new: Drop) -> None:
        """Note what it was called before."""
        self.origins[new] = self.origin(old)

    def origin(self, name: Drop) -> Drop | None:
        """What it was called before the function ran; None where it was not there."""
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
        """Follow one of Alembic's operations, which a batch has without the name of the table; False for any other."""
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
                # Not in a `with … as …`: what is done to the table is done elsewhere.
                self.rebuild(table)
            case _:
                return False
        return True

    def text(self, call: ast.Call, position: int | None, name: str) -> str | None:
        """The text in an argument; None where there is none, or it cannot be told."""
        return self.literal(argument(call, position, name))

    def literal(self, node: ast.expr | None) -> str | None:
        """The text that is written there, as such, as a constant of the file, or as op.f(…); None where it is none."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        if isinstance(node, ast.Name):
            return self.constants.get(node.id)
        if isinstance(node, ast.Call) and called(node) == "f":
            return self.text(node, 0, "name")
        return None

    def visit(self, node: ast.AST) -> None:
        """Follow any piece of syntax: those that are alike together, others by the name of their class."""
        if isinstance(node, BRANCHES):
            self.visit_branches(node)
        elif isinstance(node, ast.Constant | ast.JoinedStr):
            self.visit_text(node)
        else:
            super().visit(node)

    def visit_Call(self, call: ast.Call) -> None:
        """An operation, a function of the file, or anything else."""
        receiver = call.func.value if isinstance(call.func, ast.Attribute) else None
        batch = self.batches.get(receiver.id) if isinstance(receiver, ast.Name) else None
        if batch and not batch.decided and not keeps_the_table(call):
            self.rebuild(batch.table)
        for each in [*call.args, *call.keywords]:
            self.visit(each)
        if not self.operate(call, batch) and not batch:
            self.visit(call.func)

    def visit_With(self, node: ast.With) -> None:
        """Batches, each known by its name inside."""
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
        """The table of a batch_alter_table, and whether it is rebuilt anyway."""
        table = self.text(call, 0, "table_name")
        recreate = self.text(call, 2, "recreate") if argument(call, 2, "recreate") else "auto"
        if recreate not in ("auto", "never"):
            self.rebuild(table)
        return Batch(table, decided=recreate != "auto")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Anything of an object or module."""
        if node.attr in OTHER_WAYS:
            self.drop(None)
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        """Something that the file defines or imports, or a batch that is handed on."""
        if node.id in OTHER_WAYS:
            self.drop(None)
        if node.id in self.batches:
            self.rebuild(self.batches[node.id].table)
        elif node.id in self.definitions and isinstance(node.ctx, ast.Load):
            self.follow(node.id)

    def visit_branches(self, node: ast.AST) -> None:
        """What one branch makes is not there in the other, and not for sure after both."""
        for _, field in ast.iter_fields(node):
            before = dict(self.origins)
            for child in field if isinstance(field, list) else [field]:
                if isinstance(child, ast.AST):
                    self.visit(child)
            self.origins = before

    def visit_Raise(self, node: ast.Raise) -> None:
        """An error's words are no SQL."""

    def visit_Expr(self, node: ast.Expr) -> None:
        """A statement; docstrings are no SQL."""
        if not isinstance(node.value, ast.Constant):
            self.visit(node.value)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """Texts that are put together, or anything else."""
        if isinstance(node.op, ast.Add):
            self.visit_text(node)
        else:
            self.generic_visit(node)

    def visit_text(self, node: ast.expr) -> None:
        """A text, which may be SQL; what is computed in it is not known."""
        parts = list(self.parts(node))
        for part in parts:
            if isinstance(part, ast.expr):
                self.visit(part)
        self.read_sql("".join(part if isinstance(part, str) else COMPUTED for part in parts))

    def parts(self, node: ast.expr) -> Iterator[str | ast.expr]:
        """What a text is made of, in order."""
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
        """Find what a text drops, makes or renames, if it is SQL."""
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


# Operations that are mentioned without being called, perhaps to be called by another name; and other ways to drop.
OTHER_WAYS = ("drop_table", "drop_column", "drop_all", "DropTable", "DropTableOp", "DropColumnOp")
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.While, ast.Try, ast.TryStar, ast.ExceptHandler, ast.Match, ast.match_case)

COMPUTED = "\0"
IDENTIFIER = r"""(?:"[^"\0]+"|`[^`\0]+`|\[[^]\0]+\]|[A-Za-z_][\w$]*)"""
# Whole: not the beginning of a name that goes on with something computed.
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
    """The table or column of a name in SQL, without its schema; None for none."""
    if not name:
        return None
    last: str = re.findall(IDENTIFIER, name)[-1]
    return last[1:-1] if last[0] in '"`[' else last.lower()


def called(call: ast.Call) -> str:
    """The name of what is called: `drop_table` in op.drop_table(…)."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def argument(call: ast.Call, position: int | None, name: str) -> ast.expr | None:
    """An argument by its name, or by its position unless that is None; None where it is not given."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    return call.args[position] if position is not None and position < len(call.args) else None


def constants(tree: ast.Module) -> dict[str, str]:
    """The texts that the file gives a name, where nothing else in it has that name."""
    nodes = list(ast.walk(tree))
    names = Counter(node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    names.update(node.arg for node in nodes if isinstance(node, ast.arg))
    return {
        name: value.value
        for name, value in assignments(tree).items()
        if isinstance(value, ast.Constant) and isinstance(value.value, str) and names[name] == 1
    }


def imports(node: ast.ImportFrom, name: str) -> bool:
    """Whether the statement imports this name."""
    return any(name == (alias.asname or alias.name) or alias.name == "*" for alias in node.names)


def keeps_the_table(call: ast.Call) -> bool:
    """Whether SQLite can do this batch operation without a rebuild (alembic/ddl/sqlite.py)."""
    if called(call) != "add_column":
        return called(call) in ("create_index", "drop_index", "execute", "f", "get_bind", "get_context")
    column = argument(call, 0, "column")
    if not isinstance(column, ast.Call) or len(column.args) > 2:
        return False
    # A constraint, or a default that is an expression, needs one; so may what cannot be told.
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
