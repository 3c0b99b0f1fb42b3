"""Reads the text of a file by its type: plain text, or one column of the rows of JSON, CSV or Parquet.

The type is the last extension, or the one before `.gz`. Nothing here needs torch.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.errors import DataError
from compressor.resources import read_host_memory

OBVIOUS = ("text", "content", "prompt")
"""Names of columns that hold the text, where nobody says which column does."""
REFUSED = frozenset((
    ".zip", ".bz2", ".xz", ".zst", ".lz4", ".7z", ".rar", ".tar", ".tgz",
    ".arrow", ".feather", ".orc", ".avro", ".xlsx", ".xls", ".ods", ".sqlite", ".db", ".pkl", ".pickle", ".npy", ".npz",
    ".pt", ".bin", ".safetensors", ".gguf", ".h5", ".pdf", ".doc", ".docx", ".odt", ".epub", ".rtf",
))  # fmt: skip
"""Extensions of files whose bytes are no text, or whose text is in a packed form."""
SMALL, COPIES = 1 << 26, 4
"""A text of `SMALL` bytes is read in any case. A larger one stands in memory as bytes, as text and as tokens."""
FIX = "convert it to UTF-8 text, .jsonl, .json, .csv, .tsv or .parquet (.gz is read, too)"


@dataclass(frozen=True)
class Text:
    """The text of a source: of the whole file, or the rows of a `column` joined by line breaks.

    `notes` say which column was chosen, and how many rows were left out.
    """

    source: str
    content: str
    column: str | None = None
    notes: tuple[str, ...] = ()


def read_text(path: str | Path, column: str | None = None, key: str | None = None) -> Text:
    """The text of a file; `column` is the one that is read of a file with rows, None is the obvious one.

    `key` is the setting that chooses a column, if there is one.

    Raises DataError for a file without text, and one that holds something else.
    """
    place, kind = find_file(path), find_type(path)
    try:
        with explained(path):
            if kind in READERS:
                columns, read = READERS[kind](place)
                chosen = choose_column(columns, column, str(path), key)
                return join_rows(read(chosen), chosen, columns, column, str(path), key)
            content = decode(place, path)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read text `{path}`: {reason}; give a file with text") from None
    if not content.strip():
        raise DataError(f"{path} is empty; give a file with text")
    return Text(str(path), content)


def find_file(path: str | Path) -> Path:
    """The file; raises DataError, before it is read, unless it exists and may hold text."""
    place = Path(path).expanduser()
    if not place.exists():
        raise DataError(f"cannot read text `{path}`: no such file; check its name")
    if place.is_dir():
        raise DataError(f"cannot read text `{path}`: it is a folder; give a file with text")
    if not place.is_file():
        raise DataError(f"cannot read text `{path}`: it is no regular file but a pipe or a device; write it to a file")
    if (kind := find_type(path)) in REFUSED:
        raise DataError(f"{path} is a {kind} file, which is not read as text; {FIX}")
    if not place.stat().st_size:
        raise DataError(f"{path} is empty; give a file with text")
    return place


def find_type(path: str | Path) -> str:
    """The extension, in lower case and without a last `.gz`."""
    name = Path(path)
    return (name.with_suffix("") if is_gzip(name) else name).suffix.lower()


def is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


@contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """Raise DataError, with one line, for what the parsers of the standard library find wrong."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start} cannot be read); {FIX}") from None
    except csv.Error as error:
        raise DataError(f"{path} is not valid CSV ({error}); mend it, or rename it to .txt if it is text") from None


def decode(place: Path, path: str | Path) -> str:
    """The whole file as text, without a byte order mark; raises DataError for binary files."""
    content = read_limited(place)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} is not UTF-8 text but UTF-16; {FIX}")
    if b"\0" in content:
        raise DataError(f"{path} is binary (it holds a NUL byte), not UTF-8 text; {FIX}")
    return content.decode("utf-8-sig")


def read_limited(place: Path) -> bytes:
    """The bytes of a file, decompressed; raises DataError where there is no memory for them."""
    memory = read_host_memory()
    most = SMALL if memory is None else max(SMALL, (memory.available - memory.used) // COPIES)
    with gzip.open(place) if is_gzip(place) else place.open("rb") as file:
        content: bytes = file.read(most + 1)
    if len(content) > most:
        raise DataError(
            f"{place} holds more than the {most} bytes of text for which there is memory; give a part of it"
        )
    return content


Reader = Callable[[str], Iterable[object]]
"""Gives the values of a column."""


def open_json(place: Path) -> tuple[list[str], Reader]:
    """The columns of a JSON list of objects, or of JSON lines whatever the file is called."""
    content = decode(place, place)
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError):
        return open_json_lines(place, content)
    return list_columns([rows] if isinstance(rows, dict) else rows, place)


def open_json_lines(place: Path, content: str | None = None) -> tuple[list[str], Reader]:
    """The columns of a file with a JSON object in each line; blank lines are skipped."""
    rows = []
    for number, line in enumerate((decode(place, place) if content is None else content).split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError):
                raise DataError(
                    f"{place} is not valid JSON (line {number} cannot be read); mend it, or rename it to .txt if it is "
                    "text"
                ) from None
    return list_columns(rows, place)


def list_columns(rows: object, place: Path) -> tuple[list[str], Reader]:
    """The keys of JSON objects, in the order in which they come first."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f'{place} must hold a JSON object for each row, such as {{"text": …}}; write it so, or as .txt')
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return columns, lambda column: (row.get(column) for row in rows)


def open_csv(place: Path) -> tuple[list[str], Reader]:
    """The columns of a CSV or TSV file, named in its first row."""
    csv.field_size_limit(2**31 - 1)
    delimiter = "\t" if find_type(place) == ".tsv" else ","
    content = decode(place, place)
    first = content.partition("\n")[0]
    if delimiter == "," and "," not in first and ";" in first:  # what spreadsheets write where a comma is in numbers
        delimiter = ";"
    # Only these end a row: \n, \r and both; other characters that Python takes for line breaks are text.
    rows = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    columns = [name.strip() for name in next(rows, [])]

    def read(column: str) -> Iterator[object]:
        position = columns.index(column)
        return (row[position] if position < len(row) else None for row in rows)

    return columns, read


def open_parquet(place: Path) -> tuple[list[str], Reader]:
    """The columns of a Parquet file."""
    try:
        from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]
    except ImportError:
        raise DataError(f"{place} needs the package datasets; install it: pip install 'compressor[data]'") from None
    if is_gzip(place):
        raise DataError(f"{place} is a compressed Parquet file; decompress it (Parquet is compressed inside)")

    @contextmanager
    def reading() -> Iterator[None]:
        try:
            yield
        except (ArrowException, OSError) as error:
            reason = (str(error).splitlines() or ["it is damaged"])[0]
            raise DataError(f"{place} cannot be read as Parquet ({reason:.120}); write it again") from None

    def read(column: str) -> Iterable[object]:
        with reading():
            values: list[object] = file.read([column])[column].to_pylist()
        return values

    with reading():
        file: Any = parquet.ParquetFile(place)
        return list(file.schema_arrow.names), read


READERS: dict[str, Callable[[Path], tuple[list[str], Reader]]] = {
    ".json": open_json,
    ".jsonl": open_json_lines,
    ".ndjson": open_json_lines,
    ".csv": open_csv,
    ".tsv": open_csv,
    ".parquet": open_parquet,
}
"""Extension -> the columns of such a file, and how the values of one are read."""


def choose_column(columns: Sequence[str], wanted: str | None, source: str, key: str | None = None) -> str:
    """The wanted column, or the one that obviously holds the text; raises DataError with all columns otherwise."""
    names = ", ".join(columns) or "none"
    if wanted is not None and wanted not in columns:
        raise DataError(f"{source} has no column `{wanted}`, its columns are {names}; {advise_column(key)}")
    obvious = list(columns) if len(columns) == 1 else [name for name in columns if name.lower() in OBVIOUS]
    chosen = wanted if wanted is not None else obvious[0] if len({*obvious}) == 1 else None
    if chosen is None:
        raise DataError(f"{source} has the columns {names}, and one must be the text; {advise_column(key)}")
    if columns.count(chosen) > 1:
        raise DataError(f"{source} has {columns.count(chosen)} columns called `{chosen}`; rename all but one of them")
    return chosen


def advise_column(key: str | None) -> str:
    """How to say which column is the text."""
    return f"choose it by `{key}`" if key else "call that column `text`"


def mend_surrogates(text: str) -> str:
    """The text, with U+FFFD for each half of a character (lone surrogate): JSON can hold one, and no encoding can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def join_rows(
    values: Iterable[object],
    column: str,
    columns: Sequence[str],
    wanted: str | None,
    source: str,
    key: str | None = None,
) -> Text:
    """The rows of a column, joined by line breaks; null and blank ones are left out and counted in a note."""
    rows, left_out, mended = [], 0, 0
    for number, value in enumerate(values, 1):
        if value is None or (isinstance(value, str) and not value.strip()):
            left_out += 1
        elif isinstance(value, str):
            rows.append(mend_surrogates(value))
            mended += rows[-1] != value
        else:
            raise DataError(
                f"column `{column}` of {source} must hold text, got {type(value).__name__} in row {number}, and "
                f"there are {', '.join(columns)}; {advise_column(key)}"
            )
    if not rows:
        raise DataError(f"column `{column}` of {source} has no text in {left_out} rows; {advise_column(key)}")
    notes = []
    if wanted is None:
        others = len(columns) - 1
        notes.append(
            f"The text of {source} is its column `{column}`"
            + (f", one of {', '.join(columns)}; `{key}` chooses another." if others and key else ".")
        )
    if left_out:
        notes.append(f"{left_out} of {left_out + len(rows)} rows of {source} are empty and were left out.")
    if mended:
        notes.append(f"{mended} rows of {source} hold halves of characters (lone surrogates), read as \ufffd.")
    return Text(source, "\n".join(rows), column, tuple(notes))
