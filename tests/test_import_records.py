"""What a record of a file of users is: a line, unless a quoted cell goes on in the next ones."""

import csv
import io
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

import importing
import manage
from tests.support.service import Rows

HEADER = "username,email\n"


LONG = "x" * 3 * importing.LIMIT


def read(content: str | bytes) -> list[Any]:
    """The names in a file, and in place of a refused record its first line and the refusal."""
    raw = content.encode() if isinstance(content, str) else content
    found: dict[int, Any] = {}
    for chunk in importing.Source(io.BytesIO(raw)).chunks():
        found |= {line: registration.username for line, registration in chunk.registrations.items()}
        found |= {line: (line, refused.detail) for line, refused in chunk.refused.items()}
    return [found[line] for line in sorted(found)]


def shape(content: str | bytes) -> list[Any]:
    """The same, of what is refused only the line."""
    return [each if isinstance(each, str) else each[0] for each in read(content)]


def run(url: str, monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> Result:
    monkeypatch.setenv("DATABASE_URL", url)
    return CliRunner().invoke(manage.app, ["import", *map(str, arguments)])


@pytest.mark.parametrize(
    ("records", "found"),
    [
        ('"one\nadmin,admin@x.com\ntwo",two@x.com\nann,a@x.com\n', [2, "ann"]),
        ('"one\r\nadmin,admin@x.com\r\ntwo",two@x.com\r\nann,a@x.com\r\n', [2, "ann"]),
        ('"one\radmin,admin@x.com\rtwo",two@x.com\rann,a@x.com', [2, "ann"]),
        ('"one ""\nadmin,admin@x.com\n"" two",two@x.com\nann,a@x.com\n', [2, "ann"]),
        ('two,"two@x.com\n\nadmin,admin@x.com\n"\nann,a@x.com', [2, "ann"]),
        # Malformed: after its quote is closed the cell goes on, and another one opens.
        ('"one"more,"\nadmin,admin@x.com\n"\nann,a@x.com', [2, "ann"]),
        # A quote within a cell that does not begin with one opens nothing.
        ('on"e,one@x.com\nann,a@x.com\n', ['on"e', "ann"]),
        ('"one\nadmin,admin@x.com\nann,a@x.com\n', [2]),
        # Too long, in one line or several: nothing of it is a record, and what follows is.
        (f'"{LONG}\nadmin,admin@x.com\n{LONG}",b@x.com\nann,a@x.com\n', [2, "ann"]),
        (f'"{LONG}",b@x.com\nann,a@x.com\n', [2, "ann"]),
        (f"{' ' * importing.LIMIT}admin,admin@x.com\nann,a@x.com\n", [2, "ann"]),
        (f'"one\n{"admin,admin@x.com" + chr(10)}{HEADER * importing.LIMIT}', [2]),
    ],
)
def test_a_quoted_cell_may_hold_line_ends_and_is_part_of_one_record(records: str, found: list[Any]) -> None:
    assert shape(HEADER + records) == found


def test_a_line_ends_with_cr_or_lf_or_both_or_the_file() -> None:
    for end in ("\n", "\r\n", "\r"):
        lines = ["username,email", "ann,a@x.com", "", "bob", "eve,e@x.com"]
        assert shape(end.join(lines)) == ["ann", 4, "eve"]
    assert shape("username,email\rann,a@x.com\r\nbob\neve,e@x.com\r") == ["ann", 3, "eve"]


def test_no_character_but_cr_and_lf_ends_a_line() -> None:
    for character in "\0\v\f\x1c\x85\u2028\ufeff":
        assert shape(f"{HEADER}ann{character}admin,admin@x.com\neve,e@x.com") == [2, "eve"]


@given(st.integers(0, 9), st.sampled_from(["\n", "\r\n", "\r"]), st.data())
def test_lines_are_counted_wherever_a_long_one_is_cut(spare: int, end: str, data: st.DataObject) -> None:
    long = "x" * (importing.LIMIT * data.draw(st.integers(1, 2)) - spare)
    assert shape(f"username,email{end}{long}{end}bob{end}eve,e@x.com") == [2, 3, "eve"]


@given(st.lists(st.lists(st.text(alphabet=" ,\"\r\nax=+'", max_size=9), min_size=2, max_size=2), max_size=9))
def test_records_are_those_of_the_csv_module(rows: list[list[str]]) -> None:
    file = io.StringIO()
    csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
    source = importing.Source(io.BytesIO(f"{HEADER}{file.getvalue()}".encode()))

    assert [importing.split(record.text) for record in source.records] == rows


def test_a_header_is_a_record_too() -> None:
    assert shape('"username","email"\r\nann,a@x.com') == ["ann"]
    for header, words in (
        ('"user\nname",email\n', r"Line 1: the columns are user\nname, email. Name each"),
        ('\n\nusername,"email\nann,a@x.com\n', "Line 3: This is not CSV: unexpected end of data."),
        (f'username,"{LONG}\n', "Line 1: The record is longer than 4,095 characters."),
    ):
        with pytest.raises(importing.ImportRefused) as refused:
            read(header)
        assert words in str(refused.value)


def test_a_refusal_says_how_far_a_record_went() -> None:
    records = f'"one\n{HEADER * importing.LIMIT}'

    [(line, detail)] = read(HEADER + records)

    assert line == 2
    assert detail == (
        f"The record is longer than 4,095 characters (lines 2 to {importing.LIMIT + 2}). "
        "Close the quote that is open in it."
    )


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ('{"username":"ann","email":"a@x.com"}\r\n{"username":"eve","email":"e@x.com"}', ["ann", "eve"]),
        # One object with a carriage return for white space, and in it what a line of its own would be.
        ('{"a":\r{"username":"admin","email":"a@x.com"}\r}\n{"username":"eve","email":"e@x.com"}', [1, "eve"]),
        ('{"username":"ann","email":"a@x.com"}\r{"username":"eve","email":"e@x.com"}\r', [1]),
        ('{"username":"ann","email":"a@x.com"}{"username":"eve","email":"e@x.com"}\n', [1]),
        ('{"username":"ann","username":"eve","email":"e@x.com"}\n', [1]),
        ('{"username":"ann","\\u0075sername":"eve","email":"e@x.com"}\n', [1]),
        ('{"username":"ann","email":"a@x.com"}\n\ufeff{"username":"eve","email":"e@x.com"}\n', ["ann", 2]),
        ('{"username":"ann","email":"a@x.com"}\n{"username":"e\u2028ve","email":"e@x.com"}\n', ["ann", 2]),
        ('{"username":"ann","email":"a@x.com"}\n{"username":"eve\0","email":"e@x.com"}\0\n', ["ann", 2]),
        ('{"username":"ann","email":"a@x.com"' + " " * importing.LIMIT + "}\n{}", [1, 2]),
    ],
)
def test_a_line_of_ndjson_is_one_object_with_each_name_once(lines: str, found: list[Any]) -> None:
    assert shape(lines) == found


def test_of_a_name_that_stands_twice_neither_value_is_taken() -> None:
    refused = read('{"username":"ann","username":"eve","email":"e@x.com"}')

    assert refused == [(1, 'The field "username" is there twice in one object; send it once.')]


def test_a_record_of_several_lines_is_refused_as_one_and_fixed_as_one(
    url: str, tmp_path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "users.csv"
    file.write_text('username,email\n"one\nadmin,admin@example.com\ntwo",two@example.com\nann,ann@example.com\n')

    result = run(url, monkeypatch, file, "--on-error", "continue")

    refusals = file.with_name("users.refused.csv")
    assert result.stdout == "2 lines: 1 user imported, 0 before, 1 refused.\n"
    assert result.stderr == f"1 line was refused. Fix what is in {refusals}, and import that file.\n"
    [refused] = csv.DictReader(io.StringIO(refusals.read_bytes().decode(), newline=""))
    assert (refused["line"], refused["field"]) == ("2", "username")
    assert (refused["username"], refused["email"]) == ("one\nadmin,admin@example.com\ntwo", "two@example.com")
    again = run(url, monkeypatch, refusals, "--on-error", "continue")
    assert again.stdout == "1 line: 0 users imported, 0 before, 1 refused.\n"
    fixed = file.with_name("users.refused.refused.csv")
    fixed.write_text(fixed.read_text().replace("one\nadmin,admin@example.com\ntwo", "two"))
    assert run(url, monkeypatch, fixed).exit_code == 0
    assert rows("SELECT username, email FROM users ORDER BY username") == [
        ("ann", "ann@example.com"),
        ("two", "two@example.com"),
    ]


@pytest.mark.parametrize(
    "content",
    [
        'username,email\n"bob"by,b@x.com\n',
        'username,email\nbob,"b@x.com\n',
        f'username,email,line\n"one"",two@x.com,{LONG}\n',
        f'{{"username":"ann","email":"a@x.com"}}{" " * importing.LIMIT}\n',
        '{"username":"ann","username":"eve","email":"e@x.com"}\n',
    ],
)
def test_what_was_refused_and_is_not_fixed_is_refused_again(content: str, tmp_path: Path) -> None:
    source = importing.Source(io.BytesIO(content.encode()))
    refusals = importing.Refusals(tmp_path / "refused", source.format)
    [chunk] = source.chunks()
    with refusals.files:
        for record in chunk.records:
            refusals.write(record, chunk.refused[record.line])

    assert [type(each) for each in read((tmp_path / "refused").read_bytes())] == [tuple]


def test_a_quote_that_never_closes_takes_no_memory() -> None:
    def peak(lines: int) -> int:
        raw = io.BytesIO(b'username,email\n"one\n' + b"ann,a@example.com\n" * lines)
        tracemalloc.start()
        try:
            assert sum(len(chunk.refused) for chunk in importing.Source(raw).chunks()) == 1
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    assert peak(200_000) < 2 * peak(1_000)


def refused_and_read_again(cells: dict[str, str], path: Path) -> tuple[list[str], dict[str, str]]:
    """The cells as a spreadsheet would read them in the file of refusals, and as an import does."""
    file = io.StringIO()
    csv.writer(file).writerows((cells.keys(), cells.values()))
    source = importing.Source(io.BytesIO(file.getvalue().encode(errors="surrogatepass")))
    assert isinstance(source.format, importing.Csv)
    refusals = importing.Refusals(path, source.format)
    with refusals.files:
        for record in source.records:
            refusals.write(record, importing.LineRefused("no", "username"))
    again = importing.Source(io.BytesIO(path.read_bytes()))
    [record] = again.records
    return next(csv.reader([record.text])), again.format.parse(record.text)


@given(st.tuples(*(st.text(alphabet="'=+-@\t\r\n,\"a", min_size=1, max_size=6) for _ in range(3))))
def test_no_refused_cell_begins_a_formula_and_each_is_read_back_as_it_was(values: tuple[str, str, str]) -> None:
    cells = dict(zip(("username", "email", "phone_number"), values, strict=True))
    with TemporaryDirectory() as folder:
        shown, read_back = refused_and_read_again(cells, Path(folder, "refused"))

    assert not [cell for cell in shown if cell[:1] in tuple("=+-@\t\r\n")]
    assert read_back == cells


def test_a_phone_number_survives_its_refusal(
    url: str, tmp_path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "users.csv"
    file.write_text("username,email,phone_number\n=bob smith,bob@example.com,+4915112345678\n")
    run(url, monkeypatch, file)
    refusals = file.with_name("users.refused.csv")

    assert "'=bob smith,bob@example.com,'+4915112345678" in refusals.read_text()
    refusals.write_text(refusals.read_text().replace("=bob smith", "=bob"))
    assert run(url, monkeypatch, refusals).exit_code == 0
    assert rows("SELECT username, phone_number FROM users") == [("=bob", "+4915112345678")]


def test_an_apostrophe_in_a_file_that_is_not_of_refusals_stays() -> None:
    assert read(f"{HEADER}'=bob,bob@example.com\n") == ["'=bob"]
