"""The folder of an evaluation: its files, and the rows of scores. No row is lost or computed twice.

evaluation.json   how it was made: settings, methods
pairs.csv         which image met which mask
results.csv       a row per pair and method
rows-*.csv        rows of a run that is not done yet, a file per process
features-*.npz    what FID and Inception score have seen, a file per process
summary.json, summary.md, *.png, gallery/
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from data.locking import locked
from evaluation.metrics import METRICS
from evaluation.summary import Row
from utils.errors import UserError
from utils.files import write_atomically

_KEYS = Row._fields[:-1]  # all but the scores
_COLUMNS = (*_KEYS, *METRICS)


class ResultsFolder:
    """Paths and rows of one evaluation."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.record = self.path / "evaluation.json"
        self.pairs = self.path / "pairs.csv"
        self.results = self.path / "results.csv"
        self.summary_json = self.path / "summary.json"
        self.summary_markdown = self.path / "summary.md"
        self.gallery = self.path / "gallery"

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Keep other evaluations from the folder. UserError where it is a file, or one is there."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out: a file, where a folder is needed: {self.path}")
        return locked(self.path)

    def open(self, pairs: str, settings: Mapping[str, Any], methods: Mapping[str, str]) -> list[str]:
        """Begin an evaluation, or go on with it; returns the methods whose rows were dropped, as they have changed.

        pairs: the text of pairs.csv. settings: what all scores depend on. methods: the identity of each method by name,
        such as the hash of its weights. UserError where the folder holds something else.
        """
        record = self._read_record()
        if record is None:
            self.path.mkdir(parents=True, exist_ok=True)
            record = {"made_by": "evaluate.py", "settings": dict(settings), "methods": {}}
        elif record["settings"] != dict(settings) or _read_text(self.pairs) != pairs:
            raise UserError(
                f"--out: {self.path} holds an evaluation of other pairs or settings ({_differences(record, settings)});"
                " name another folder"
            )
        known = record["methods"]
        dropped = [name for name, identity in methods.items() if known.get(name, identity) != identity]
        _write_text(self.pairs, pairs)
        # The rows of a changed method go first: a crash between the two must not leave them under its new name.
        self.write_rows(row for row in self.rows() if row.method not in dropped)
        if dropped:
            for path in self.all_features():
                path.unlink()
        _write_text(self.record, json.dumps({**record, "methods": {**known, **methods}}, indent=2) + "\n")
        return dropped

    def rows(self) -> list[Row]:
        """All rows there are, of unfinished runs too, by pair and method."""
        rows = {}
        for path in (self.results, *sorted(self.path.glob("rows-*.csv"))):
            for row in _read_rows(path):
                rows[row.pair, row.method] = row
        return [rows[key] for key in sorted(rows)]

    def write_rows(self, rows: Iterable[Row]) -> None:
        """Make these rows the whole of results.csv; the files of unfinished runs go."""
        text = io.StringIO()
        writer = _writer(text)
        for row in rows:
            writer.writerow({**dict(zip(_KEYS, row, strict=False)), **row.scores})
        _write_text(self.results, text.getvalue())
        for path in self.path.glob("rows-*.csv"):
            path.unlink()

    def append_to(self, process: int) -> RowFile:
        """The file that a process appends its rows to."""
        return RowFile(self.path / f"rows-{process}.csv")

    def features(self, process: int) -> Path:
        """Where a process keeps what FID and Inception score have seen."""
        return self.path / f"features-{process}.npz"

    def all_features(self) -> list[Path]:
        return sorted(self.path.glob("features-*.npz"))

    def _read_record(self) -> dict[str, Any] | None:
        """What evaluation.json says; None where the folder is new or empty. UserError where it is another's."""
        if not self.path.exists() or not any(self.path.iterdir()):
            return None
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
            if record["made_by"] == "evaluate.py" and isinstance(record["methods"], dict) and self.pairs.is_file():
                return record
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise UserError(f"--out: {self.path} is not empty and holds no evaluation of evaluate.py; name another folder")


class RowFile:
    """Appends rows one by one. After a kill the file is whole up to its last line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> RowFile:
        self._file: TextIO = self.path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        self._writer = _writer(self._file)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, row: Row) -> None:
        self._writer.writerow({**dict(zip(_KEYS, row, strict=False)), **row.scores})
        self._file.flush()


def _writer(file: TextIO) -> csv.DictWriter[str]:
    writer = csv.DictWriter(file, _COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    return writer


def _read_rows(path: Path) -> list[Row]:
    """The rows of a file; none where it is not there. What a killed run left of a last line is dropped."""
    if not path.is_file():
        return []
    text = _read_text(path)
    try:
        return [_row(values) for values in csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"not rows of evaluate.py: {path}: {error}; remove the folder or name another --out") from None


def _row(values: Mapping[str, str]) -> Row:
    scores = {metric: float(values[metric]) for metric in METRICS if values[metric]}
    image, mask, bin_, border, method = (values[key] for key in ("image", "mask", "bin", "border", "method"))
    return Row(int(values["pair"]), image, mask, bin_, border, float(values["ratio"]), method, scores)


def _differences(record: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """In words, what differs between a record and what is asked for now."""
    before = record["settings"]
    if before.get("files") != settings.get("files") and {**before, "files": 0} == {**settings, "files": 0}:
        return "files of the same names with other contents, or of another folder"
    changed = [
        f"{key} was {before.get(key)}, is {value}"
        for key, value in settings.items()
        if before.get(key) != value and key != "files"
    ]
    return "; ".join(changed) or "its pairs.csv differs: other images, masks, --seed or --limit"


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda part: part.write_bytes(text.encode("utf-8", "surrogateescape")))


def _read_text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "surrogateescape")
