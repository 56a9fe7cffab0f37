"""The folder of an evaluation: its files, and the rows of scores. No row is lost or computed twice.

evaluation.json   settings and methods
pairs.csv         pairs of image and mask
results.csv       one row per pair and method
rows-*.csv        rows of an unfinished run, one file per process
features-*.npz    features for FID and Inception score, one file per process
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
        """Lock the folder. Raises UserError if it is a file or another evaluation holds the lock."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out: must be a folder, but is a file: {self.path}")
        return locked(self.path)

    def open(self, pairs: str, settings: Mapping[str, Any], methods: Mapping[str, str]) -> list[str]:
        """Begin or resume an evaluation. Returns the methods that have changed; their rows are dropped.

        pairs: the text of pairs.csv. settings: values that all scores depend on. methods: an identity per name, such as
        the hash of its weights. Raises UserError if the folder holds another evaluation or other files.
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
        # Rows of changed methods are dropped before the record is written, so that no crash in between keeps them.
        self.write_rows(row for row in self.rows() if row.method not in dropped)
        if dropped:
            for path in self.all_features():
                path.unlink()
        _write_text(self.record, json.dumps({**record, "methods": {**known, **methods}}, indent=2) + "\n")
        return dropped

    def rows(self) -> list[Row]:
        """Return all rows, of unfinished runs too, sorted by pair and method."""
        rows = {}
        for path in (self.results, *sorted(self.path.glob("rows-*.csv"))):
            for row in _read_rows(path):
                rows[row.pair, row.method] = row
        return [rows[key] for key in sorted(rows)]

    def write_rows(self, rows: Iterable[Row]) -> None:
        """Replace results.csv by these rows and remove the files of unfinished runs."""
        text = io.StringIO()
        writer = _writer(text)
        for row in rows:
            writer.writerow({**dict(zip(_KEYS, row, strict=False)), **row.scores})
        _write_text(self.results, text.getvalue())
        for path in self.path.glob("rows-*.csv"):
            path.unlink()

    def append_to(self, process: int) -> RowFile:
        """Return the file that a process appends its rows to."""
        return RowFile(self.path / f"rows-{process}.csv")

    def features(self, process: int) -> Path:
        """Return the path of a process's features for FID and Inception score."""
        return self.path / f"features-{process}.npz"

    def all_features(self) -> list[Path]:
        return sorted(self.path.glob("features-*.npz"))

    def _read_record(self) -> dict[str, Any] | None:
        """Read evaluation.json; None if the folder is new or empty. Raises UserError if it holds something else."""
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
    """Appends rows one by one. After a kill all lines but the last are complete."""

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
    """Read the rows of a file; [] if there is none. Drops a last line that a killed run left incomplete."""
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
    """Return a text with the differences between a record and the current settings."""
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
