"""The summary of an evaluation as text: tables for the terminal, summary.md in the paper's layout, summary.json."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data.mask_files import BORDERS
from evaluation.metrics import METRICS
from evaluation.summary import ALL, BINS, Estimate, Key, Summary

# The paper's network, from its Table 1: Places2 at 512×512, the paper's masks of border "any". Contains only figures
# that were checked against the paper.
PAPER = {
    "l1_percent": {"0.1-0.2": "1.09", "0.2-0.3": "1.88", "0.3-0.4": "2.84"},
    "psnr": {"0.1-0.2": "28.32", "0.2-0.3": "25.25", "0.3-0.4": "22.89"},
    "ssim": {"0.1-0.2": "0.870", "0.2-0.3": "0.779", "0.3-0.4": "0.689"},
}
PAPER_BORDER = "any"

_LETTERS = {"free": "N", "any": "B"}  # the paper's names of BORDERS
_NONE = "–"  # a missing value
_WIDTH = 120  # characters per line of a terminal
_CELL = 11  # characters per value there

Column = tuple[str, str]  # bin, border
Grid = dict[str, list[Estimate | None]]  # by method, one per column


def terminal_table(summary: Summary, methods: Sequence[str]) -> str:
    """Return a table per metric: means by method and hole bin, borders together; at most 120 characters wide.

    A star marks the best value of a column and every value that rounds to the same.
    """
    tables = []
    for metric in _metrics(summary, methods):
        columns, grid = _grid(summary, metric, methods, [ALL])
        bests = [_best(metric, column) for column in zip(*grid.values(), strict=True)]
        width = min(max(map(len, ("pairs", *grid))), _WIDTH - _CELL * len(columns))
        lines = [_title(metric), " " * width + "".join(f"{bin_:>{_CELL - 1}} " for bin_, _ in columns)]
        for method, estimates in grid.items():
            line = f"{_shortened(method, width):{width}}"
            for estimate, best in zip(estimates, bests, strict=True):
                text = _number(metric, estimate)
                line += f"{text:>{_CELL - 1}}{'*' if text == best else ' '}"
            lines.append(line)
        lines.append(f"{'pairs':{width}}" + "".join(f"{count:>{_CELL - 1}} " for count in _counts(grid)))
        tables.append("\n".join(line.rstrip() for line in lines))
    return "\n\n".join(tables)


def summary_markdown(
    summary: Summary, differences: Summary, methods: Sequence[str], settings: Mapping[str, str]
) -> str:
    """Return all means with their intervals, in the paper's layout, as Markdown for GitHub.

    differences: other methods minus the first one. settings: texts that describe the evaluation.
    """
    parts = [
        "# Evaluation",
        "Means over pairs of an image and a mask, and under each its 95 % bootstrap interval. The columns are bins of"
        " the mask's share of hole. N: holes that keep away from the image's edge; B: holes anywhere. Bold: the best"
        " of a column.",
    ]
    metrics = _metrics(summary, methods)
    if any(_quoted(metric, _grid(summary, metric, methods, BORDERS)[0]) for metric in metrics):
        parts.append(
            "*QUOTED* rows are the paper's own figures for its network, for reference: measured on Places2 at 512×512"
            " with the paper's masks, so not comparable one to one. Only figures checked against the paper are quoted;"
            f" the others stand as {_NONE}."
        )
    for metric in metrics:
        parts.append(f"## {_title(metric)}")
        borders = {border for _, border in _grid(summary, metric, methods, BORDERS)[0]}
        if borders:
            parts.append(_markdown_table(summary, metric, methods, BORDERS))
        if len(borders) != 1:  # with one border it would be the same table
            parts += ["N and B together:", _markdown_table(summary, metric, methods, [ALL])]
    if _metrics(differences, methods):
        parts += [
            f"## Differences to {_escaped(methods[0])}",
            f"Each method minus {_escaped(methods[0])}, pair by pair, over all bins and borders, with the 95 %"
            " bootstrap interval. Bold: the interval leaves out 0.",
            _difference_table(differences, methods),
        ]
        for metric in _metrics(differences, methods):
            parts += [
                f"{_title(metric)}, by column. {_escaped(methods[0])} is {_lead(differences, metric, methods)}.",
                _difference_table_by_column(differences, metric, methods),
            ]
    parts += ["## Settings", "\n".join(f"- {_escaped(key)}: {_escaped(value)}" for key, value in settings.items())]
    return "\n\n".join(parts) + "\n"


def summary_json(
    summary: Summary, differences: Summary, methods: Sequence[str], settings: Mapping[str, str]
) -> dict[str, Any]:
    """Return the same as plain values for JSON:

    methods: names; differences are relative to the first one
    metrics: label and higher_is_better, by name
    estimates, differences: lists of {method, metric, bin, border, mean, low, high, count}; bin and border may be "all";
        unknown values are null
    settings: as given
    """
    return {
        "methods": list(methods),
        "metrics": {
            metric: {"label": METRICS[metric].label, "higher_is_better": METRICS[metric].higher_is_better}
            for metric in _metrics(summary, methods)
        },
        "estimates": _records(summary, methods),
        "differences": _records(differences, methods),
        "settings": dict(settings),
    }


def _records(summary: Summary, methods: Sequence[str]) -> list[dict[str, Any]]:
    keys = (
        Key(method, metric, bin_, border)
        for metric in METRICS
        for method in methods
        for bin_ in (*BINS, ALL)
        for border in (*BORDERS, ALL)
    )
    return [
        {field: _finite(value) for field, value in (key._asdict() | summary[key]._asdict()).items()}
        for key in keys
        if key in summary
    ]


def _finite(value: Any) -> Any:
    """Return None for NaN and infinity, which JSON lacks."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _markdown_table(summary: Summary, metric: str, methods: Sequence[str], borders: Sequence[str]) -> str:
    columns, grid = _grid(summary, metric, methods, borders)
    bests = [_best(metric, column) for column in zip(*grid.values(), strict=True)]
    lines = []
    for method, estimates in grid.items():
        cells = []
        for estimate, best in zip(estimates, bests, strict=True):
            text = _number(metric, estimate)
            cells.append(f"**{text}**" if text == best else text)
            cells[-1] += _interval(metric, estimate)
        lines.append([_escaped(method), *cells])
    lines.append(["pairs", *_counts(grid)])
    if quoted := _quoted(metric, columns):
        lines.append(["*PConv, QUOTED from the paper; the other cells: its Table 1, arXiv 1804.07723*", *quoted])
    return _table(["method", *map(_head, columns)], lines)


def _difference_table(differences: Summary, methods: Sequence[str]) -> str:
    metrics = _metrics(differences, methods)
    lines = []
    for method in methods[1:]:
        cells = []
        for metric in metrics:
            cells.append(_difference(metric, differences.get(Key(method, metric, ALL, ALL))))
        lines.append([_escaped(method), *cells])
    return _table(["method", *map(_title, metrics)], lines)


def _difference_table_by_column(differences: Summary, metric: str, methods: Sequence[str]) -> str:
    columns, grid = _grid(differences, metric, methods[1:], BORDERS)
    lines = ([_escaped(name), *(_difference(metric, estimate) for estimate in row)] for name, row in grid.items())
    return _table(["method", *map(_head, columns)], lines)


def _lead(differences: Summary, metric: str, methods: Sequence[str]) -> str:
    """Return a text: in how many bins and borders the first method is better than all others."""
    columns, grid = _grid(differences, metric, methods[1:], BORDERS)
    sign = -1 if METRICS[metric].higher_is_better else 1  # of the difference to a worse method
    better = certain = 0
    bins = [cells for (bin_, _), cells in zip(columns, zip(*grid.values(), strict=True), strict=True) if bin_ != ALL]
    for cells in bins:
        ahead = all(cell is not None and cell.mean * sign > 0 for cell in cells)
        better += ahead
        certain += ahead and all(map(_leaves_out_zero, cells))
    return (
        f"better than each of the others in {better} of {len(bins)} bins and borders, in {certain} of them with"
        " intervals that leave out 0"
    )


def _difference(metric: str, estimate: Estimate | None) -> str:
    """Return a cell of a table of differences."""
    text = _number(metric, estimate, signed=True)
    if _leaves_out_zero(estimate):
        text = f"**{text}**"
    return text + _interval(metric, estimate, signed=True)


def _head(column: Column) -> str:
    """Return the header of a column of bin and border."""
    bin_, border = column
    return bin_ if border == ALL else f"{bin_}<br>{_LETTERS[border]}"


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table. All columns but the first are right-aligned."""
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _metrics(summary: Summary, methods: Sequence[str]) -> list[str]:
    """Return the names in METRICS for which any of the methods has a value."""
    known = {key.metric for key in summary if key.method in methods}
    return [metric for metric in METRICS if metric in known]


def _grid(summary: Summary, metric: str, methods: Sequence[str], borders: Sequence[str]) -> tuple[list[Column], Grid]:
    """Return columns and rows of a table. Columns and methods without a value are left out."""
    known = {key for key in summary if key.metric == metric and key.method in methods and key.border in borders}
    present = {(key.bin, key.border) for key in known}
    columns = [(bin_, border) for bin_ in (*BINS, ALL) for border in borders if (bin_, border) in present]
    named = [method for method in methods if any(key.method == method for key in known)]
    return columns, {method: [summary.get(Key(method, metric, *column)) for column in columns] for method in named}


def _best(metric: str, column: Sequence[Estimate | None]) -> str | None:
    """Return the best mean of a column as displayed; None if there is nothing to compare."""
    means = [estimate.mean for estimate in column if estimate]
    finite = [mean for mean in means if not math.isnan(mean)]
    if len(means) < 2 or not finite:
        return None
    return _rounded(metric, max(finite) if METRICS[metric].higher_is_better else min(finite))


def _counts(grid: Grid) -> list[str]:
    """Return the number of pairs per column; a range if it differs between methods."""
    counts = [{estimate.count for estimate in column if estimate} for column in zip(*grid.values(), strict=True)]
    return [f"{min(column)}" if len(column) == 1 else f"{min(column)}-{max(column)}" for column in counts]


def _leaves_out_zero(estimate: Estimate | None) -> bool:
    if not estimate or estimate.low is None or estimate.high is None:
        return False
    return estimate.low > 0 or estimate.high < 0


def _quoted(metric: str, columns: Sequence[Column]) -> list[str]:
    """Return the paper's figures for these columns; [] if PAPER has none."""
    cells = [PAPER.get(metric, {}).get(bin_, _NONE) if border == PAPER_BORDER else _NONE for bin_, border in columns]
    return cells if set(cells) - {_NONE} else []


def _title(metric: str) -> str:
    known = METRICS[metric]
    return f"{known.label} ({'higher' if known.higher_is_better else 'lower'} is better)"


def _number(metric: str, estimate: Estimate | None, signed: bool = False) -> str:
    return _rounded(metric, estimate.mean, signed) if estimate else _NONE


def _interval(metric: str, estimate: Estimate | None, signed: bool = False) -> str:
    """Return the interval as a second line of a Markdown cell; "" if there is none."""
    if not estimate or estimate.low is None or estimate.high is None:
        return ""
    low, high = (_rounded(metric, end, signed) for end in (estimate.low, estimate.high))
    return f"<br>[{low},\u00a0{high}]"  # a no-break space keeps it on one line


def _rounded(metric: str, value: float, signed: bool = False) -> str:
    """Format a value with the digits of its metric; a difference with its sign and one more digit."""
    digits = METRICS[metric].digits + signed
    return f"{round(value, digits) + 0.0:{'+' if signed else ''}.{digits}f}"  # + 0.0: no minus sign before zero


def _shortened(name: str, width: int) -> str:
    """Shorten a name to `width` characters by an ellipsis in its middle."""
    if len(name) <= width:
        return name
    return f"{name[: (width - 1) // 2]}…{name[len(name) - width // 2 :]}"


def _escaped(text: str) -> str:
    """Escape a text for Markdown, in one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(text.split()))
