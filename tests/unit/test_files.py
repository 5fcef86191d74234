"""Files that commands are given: what nobody meant to give is refused with its name, and never held whole."""

import io
import socket
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from services.operations.backfill import Row, Shape, read_file
from services.operations.event_files import read_values
from services.operations.register import MOST_LINE, PEOPLE, Reading, items_of_file
from services.runtime.errors import UsageError
from services.runtime.files import lines_of, open_lines, read_whole
from services.walkthrough_mcp.exchange import read_export

HEAD = "mcp_server_user_id,walkthrough_id,step_id,completed_at"
ROW = "ann,wt_a,a,1750000000000"


class Unreadable(io.RawIOBase):
    """A file on a disk that is broken."""

    def readable(self) -> bool:
        return True

    def readinto(self, _: object) -> int:
        raise OSError(5, "Input/output error")


@pytest.fixture(params=["a socket", "below a file", "a loop", "a long name"])
def nowhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """What cannot be opened."""
    file = tmp_path / "f"
    with socket.socket(socket.AF_UNIX) as listening:
        if request.param == "a socket":
            listening.bind(str(file))
        elif request.param == "below a file":
            file.touch()
            file /= "more"
        elif request.param == "a loop":
            file.symlink_to(file)
        else:
            file = tmp_path / ("x" * 300)
        yield file


def test_what_cannot_be_opened_is_named(nowhere: Path) -> None:
    with pytest.raises(UsageError, match=str(nowhere)), open_lines(str(nowhere)):
        pass


@pytest.mark.parametrize("read", [read_values, lambda stream, name: lines_of(stream, name, 100)])
def test_what_cannot_be_read_is_named(read: object) -> None:
    assert callable(read)
    values: Iterable[object] = read(io.BufferedReader(Unreadable()), "broken.ndjson")
    with pytest.raises(UsageError, match=r"broken\.ndjson: Input/output error"):
        list(values)


def test_of_a_line_without_end_a_little_is_read() -> None:
    stream = io.BytesIO(b"a" * 10 * MOST_LINE)
    reading = Reading(None, lambda _: None, lambda _: None)
    with pytest.raises(UsageError, match="line 1: it has more than 100,000 bytes"):
        list(items_of_file(lines_of(stream, "f", MOST_LINE), PEOPLE, reading))
    assert stream.tell() == MOST_LINE + 1


def test_of_a_file_without_end_a_little_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="/dev/zero: it has more than 5 bytes"):
        read_whole(Path("/dev/zero"), 5)
    (tmp_path / "five").write_bytes(b"12345")
    assert read_whole(tmp_path / "five", 5) == b"12345"
    with pytest.raises(UsageError, match="/dev/zero: it has more than 16,777,216 bytes"):
        read_export(Path("/dev/zero"))


def rows(file: Path) -> list[tuple[str, Row | str]]:
    return list(read_file(file, Shape(), lambda _: None))


@pytest.mark.parametrize("cells", ["x" * 1000, '"x\n",'], ids=["one line", "one row"])
def test_a_table_without_end_is_refused_with_its_place(tmp_path: Path, cells: str) -> None:
    """Also where it is small: compressed, it has a thousandth of its length."""
    packer = zlib.compressobj(wbits=31)
    bomb = tmp_path / "bomb.csv.gz"
    content = (HEAD + "\n" + cells * (2_000_000 // len(cells))).encode()
    bomb.write_bytes(packer.compress(content) + packer.flush())
    with pytest.raises(UsageError, match=r"line \d+: a row has more than 1,000,000 characters"):
        rows(bomb)


def test_a_long_table_of_short_rows_is_read(tmp_path: Path) -> None:
    table = tmp_path / "long.csv"
    table.write_text("\n".join([HEAD, *[ROW] * 50_000]))
    assert len(table.read_bytes()) > 1_000_000
    assert len(rows(table)) == 50_000


def test_metadata_of_a_table_that_is_nested_too_deeply_is_told_with_its_line(tmp_path: Path) -> None:
    table = tmp_path / "deep.csv"
    nested = '"' + '{""a"":' * 20_000 + '"'
    table.write_text(f"{HEAD},metadata\n{ROW},{nested}\n{ROW},\n")
    (place, problem), (_, good) = rows(table)
    assert (place, problem) == ("line 2", "metadata: it is nested too deeply")
    assert isinstance(good, Row)
