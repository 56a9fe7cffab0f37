"""Plots of an evaluation: each metric over the bins of hole ratios, one line per method."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from matplotlib import style
from matplotlib.figure import Figure

from evaluation.metrics import METRICS
from evaluation.summary import ALL, BINS, Estimate, Key, Summary
from utils.files import write_atomically

# Okabe and Ito's colours, which colour-blind people can distinguish, and markers. 7 colours and 6 markers are coprime,
# so their combinations repeat after 42 methods.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#000000", "#56b4e9")
_MARKERS = ("o", "s", "^", "D", "v", "P")

_INK, _FAINT, _BAND = "#333333", "#dddddd", "#f5f5f5"
_DODGE = 0.1  # offset between methods in a bin, in units of the distance between bins
_WIDEST = 0.7  # width of all methods in a bin, in the same units
_DPI = 150
_STYLE = {
    "text.parse_math": False,  # keep a $ in a method's name
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": _FAINT,
}


def draw_plots(folder: Path, summary: Summary, methods: Sequence[str]) -> list[Path]:
    """Write METRIC.png into `folder` for each metric with values in bins (borders together). Returns the paths.

    The same summary gives the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for metric in METRICS:
        lines = {method: _line(summary, method, metric) for method in methods}
        if any(lines.values()):
            paths.append(folder / f"{metric}.png")
            with style.context(["default", _STYLE]), warnings.catch_warnings():
                # Characters that the font lacks are drawn as boxes.
                warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
                write_atomically(paths[-1], partial(_save, _figure(metric, lines)))
    return paths


def _line(summary: Summary, method: str, metric: str) -> dict[str, Estimate]:
    """Return the estimates of one method by bin, borders together."""
    keys = {bin_: Key(method, metric, bin_, ALL) for bin_ in BINS}
    return {bin_: summary[key] for bin_, key in keys.items() if key in summary}


def _figure(metric: str, lines: Mapping[str, Mapping[str, Estimate]]) -> Figure:
    """Plot one metric. lines: estimates by method and bin."""
    shown = METRICS[metric]
    bins = [bin_ for bin_ in BINS if any(bin_ in line for line in lines.values())]
    figure = Figure(figsize=(0.9 * len(bins) + 2, 4))
    axes = figure.subplots()
    for place in range(1, len(bins), 2):
        axes.axvspan(place - 0.5, place + 0.5, color=_BAND, linewidth=0)
    handles = []
    step = min(_DODGE, _WIDEST / len(lines))
    for index, line in enumerate(lines.values()):
        dodge = (index - (len(lines) - 1) / 2) * step
        at = [bins.index(bin_) + dodge for bin_ in line]
        colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
        means = [estimate.mean for estimate in line.values()]
        # Thin lines: steep neighbouring lines look closer than their values are.
        axes.plot(at, means, color=colour, linewidth=0.6, alpha=0.5)
        handles += axes.plot(at, means, color=colour, marker=marker, markersize=5.5, linestyle="none")
        for x, estimate in zip(at, line.values(), strict=True):
            if estimate.low is not None and estimate.high is not None:
                axes.vlines(x, estimate.low, estimate.high, color=colour, linewidth=1.6)
    axes.set_xticks(range(len(bins)), bins)
    axes.set_xlim(-0.5, len(bins) - 0.5)
    axes.set_xlabel("hole ratio: share of the picture")
    axes.set_ylabel(f"{shown.label}   ({'↑ higher' if shown.higher_is_better else '↓ lower'} is better)")
    axes.set_title(shown.label, loc="left", weight="bold", pad=24)
    axes.annotate(_subtitle(lines), (0, 1), (0, 8), "axes fraction", "offset points", color=_INK)
    legend = axes.legend(handles, [""] * len(lines), loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    for text, method in zip(legend.get_texts(), lines, strict=True):
        text.set_text(method)  # legend() would skip names that start with _
    return figure


def _subtitle(lines: Mapping[str, Mapping[str, Estimate]]) -> str:
    """Return what a point means, such as "mean of 200 pairs a bin, with 95 % intervals"."""
    estimates = [estimate for line in lines.values() for estimate in line.values()]
    least, most = min(e.count for e in estimates), max(e.count for e in estimates)
    count = f"{most}" if least == most else f"{least} to {most}"
    with_intervals = any(estimate.low is not None for estimate in estimates)
    return f"mean of {count} pairs a bin, with 95 % intervals" if with_intervals else f"of {count} pairs a bin"


def _save(figure: Figure, path: Path) -> None:
    """Write a PNG, enlarged to fit the legend. Leaves out matplotlib's version, so that the bytes depend on it less."""
    figure.savefig(path, format="png", dpi=_DPI, bbox_inches="tight", metadata={"Software": None})
