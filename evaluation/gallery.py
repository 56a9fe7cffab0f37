"""The gallery of an evaluation: pictures of good, median and bad cases, and an HTML page that compares them."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from PIL import Image, ImageFont

from evaluation.metrics import METRICS
from evaluation.pictures import sheet, to_8_bit_pixels
from evaluation.summary import BINS, Row
from utils.files import write_atomically

RANKS = ("best", "median", "worst")
RANKED_BY = next(iter(METRICS))

_BINS = (*BINS, "")  # "": outside all bins
_TEMPLATE = Path(__file__).with_name("gallery.html")

# File names of this module's pictures, to tell those of an earlier gallery from other files.
_OWN_NAME = re.compile(
    rf"({'|'.join(map(re.escape, BINS))}|outside)_({'|'.join(RANKS)})(_(masked|truth|\d+(-[A-Za-z0-9]+)*))?\.png"
)


class Case(NamedTuple):
    """One pair: the pictures of all methods and their scores."""

    pair: int
    image: str  # name of the image file, as in pairs.csv
    bin: str  # one of BINS, or "" if the hole ratio is in none
    border: str  # one of BORDERS
    ratio: float  # share of hole
    rank: str  # one of RANKS, by L1 of the first method within the bin
    masked: np.ndarray  # (H,W,3) in [0,1], holes white
    truth: np.ndarray  # (H,W,3)
    composites: dict[str, np.ndarray]  # by method, (H,W,3)
    scores: dict[str, dict[str, float]]  # by method and name in METRICS


def choose(rows: Sequence[Row], first: str) -> list[tuple[int, str]]:
    """Return (pair, rank) of the pairs to show: best, median and worst L1 of the method `first` in each bin.

    For an even count the median is the better of the two middle pairs. Two pairs are best and worst, one is best.
    """
    chosen = []
    for bin_ in _BINS:
        members = [row for row in rows if row.method == first and row.bin == bin_]
        members.sort(key=lambda row: (row.scores[RANKED_BY], row.pair))
        last = len(members) - 1
        places = {"best": 0, "median": last // 2, "worst": last}
        taken = RANKS if len(members) >= 3 else ("best", "worst")[: len(members)]
        chosen += [(members[places[rank]].pair, rank) for rank in taken]
    return chosen


def write_gallery(folder: Path, cases: Iterable[Case], methods: Sequence[str], title: str) -> Path:
    """Write pictures, sheets and index.html of the cases into `folder`. Returns the path of index.html.

    There is at most one case per bin and rank. Only one case's pictures are in memory at a time. Pictures of an
    earlier gallery are overwritten, or removed once the new page is written; other files stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # map, because a loop variable would keep a case in memory until the next one is made.
    shown = list(map(partial(_write_case, folder, methods), cases))
    shown.sort(key=lambda entry: (_BINS.index(entry["bin"]), RANKS.index(entry["rank"])))
    index = folder / "index.html"
    page = _page(shown, methods, title)
    # File names that are not UTF-8 contain surrogates, which UTF-8 cannot encode.
    write_atomically(index, lambda temporary: temporary.write_text(page, encoding="utf-8", errors="replace"))
    written = {name for entry in shown for name in (entry["sheet"], *entry["pictures"])}
    for path in folder.iterdir():
        if _OWN_NAME.fullmatch(path.name) and path.name not in written:
            path.unlink()
    return index


def _write_case(folder: Path, methods: Sequence[str], case: Case) -> dict[str, Any]:
    """Write the pictures and the sheet of a case. Returns its data for the page."""
    name = f"{case.bin or 'outside'}_{case.rank}"
    pictures = {f"{name}_masked.png": case.masked}
    pictures |= {f"{name}_{i}{_slug(method)}.png": case.composites[method] for i, method in enumerate(methods, 1)}
    pictures |= {f"{name}_truth.png": case.truth}
    for file, picture in pictures.items():
        _write_png(folder / file, to_8_bit_pixels(picture))
    width = case.truth.shape[1]
    titles = tuple(_fitting(title, width) for title in ("masked", *methods, "truth"))
    _write_png(folder / f"{name}.png", sheet([list(pictures.values())], titles))
    return {
        "name": name,
        "pair": case.pair,
        "image": case.image,
        "bin": case.bin,
        "border": case.border,
        "ratio": case.ratio,
        "rank": case.rank,
        "width": width,
        "height": case.truth.shape[0],
        "sheet": f"{name}.png",
        "pictures": list(pictures),  # masked, each method, truth
        "scores": [_finite(case.scores[method]) for method in methods],
    }


def _write_png(path: Path, pixels: np.ndarray) -> None:
    write_atomically(path, partial(Image.fromarray(pixels).save, format="PNG"))


def _slug(method: str) -> str:
    """Return the ASCII letters and digits of a method's name, each run after a hyphen; "" if there are none."""
    return "".join(f"-{word}" for word in re.findall("[A-Za-z0-9]+", method))[:40].rstrip("-")


def _finite(scores: dict[str, float]) -> dict[str, float | None]:
    """Return the scores with None for NaN and infinity, which JSON lacks."""
    return {metric: value if math.isfinite(value) else None for metric, value in scores.items()}


def _fitting(title: str, width: int) -> str:
    """Return the title in one line. If it is wider than `width` px, dots replace its middle."""
    title = " ".join(title.split())
    font = ImageFont.load_default()
    for kept in range(len(title), 0, -1):
        text = title if kept == len(title) else f"{title[: kept // 2]}...{title[-(kept - kept // 2) :]}"
        if font.getlength(text) <= width:
            return text
    return ""


def _page(shown: Sequence[dict[str, Any]], methods: Sequence[str], title: str) -> str:
    """Return the text of index.html."""
    known = {metric for entry in shown for scores in entry["scores"] for metric in scores}
    data = {
        "sources": ["masked", *methods, "truth"],  # one per picture of a case
        "metrics": [{"name": name, **METRICS[name]._asdict()} for name in METRICS if name in known],
        "ranks": RANKS,
        "cases": shown,
    }
    sheets = [
        f'<p>{entry["name"]}</p>\n<img src="{quote(entry["sheet"])}" alt="masked, methods, truth: {entry["name"]}">'
        for entry in shown
    ]
    parts = {
        "title": html.escape(title),
        "sheets": "\n".join(sheets),
        # Inside a script element only "<" could end the data.
        "data": json.dumps(data).replace("<", "\\u003c"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _TEMPLATE.read_text(encoding="utf-8"))
