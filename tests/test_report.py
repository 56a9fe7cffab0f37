"""The terminal table, summary.md and summary.json: every figure is in its place."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import numpy as np
import pytest

from data.mask_files import BORDERS
from evaluation.metrics import METRICS
from evaluation.report import PAPER, summary_json, summary_markdown, terminal_table
from evaluation.summary import ALL, BINS, Estimate, Key, Row, differences, summarise

NBSP = "\u00a0"
METHODS = ("ours", "telea")
SETTINGS = {"images": "4 of photos", "command": "python evaluate.py --out a_b"}


def all_rows(images=4):
    """Yield rows with L1 b + 0.1 c for bin b and border c, plus 1 for the second method and 0.02 for odd images."""
    pair = 0
    for image in range(images):
        for b, bin_ in enumerate(BINS):
            for c, border in enumerate(BORDERS):
                for m, method in enumerate(METHODS):
                    scores = {"l1_percent": b + 0.1 * c + m + 0.02 * (image % 2), "psnr": 30.0 - b - m}
                    yield Row(pair, f"{image}.png", "m.png", bin_, border, 0.1, method, scores)
                pair += 1


@pytest.fixture(scope="module")
def rows():
    return list(all_rows())


@pytest.fixture(scope="module")
def markdown(rows):
    return summary_markdown(summarise(rows), differences(rows, "ours"), METHODS, SETTINGS)


def tables(markdown):
    """Return tables as lists of rows of cells, each with the line before it."""
    blocks = markdown.split("\n\n")
    found = []
    for before, block in pairwise(blocks):
        if block.startswith("| "):
            rows = [re.split(r" (?<!\\)\| ", line[2:-2]) for line in block.rstrip().split("\n")]
            assert len({len(row) for row in rows}) == 1
            assert re.fullmatch("---( ---:)*", " ".join(rows.pop(1)))
            found.append((before, rows))
    return found


def one(mean, low=None, high=None, count=3):
    return Estimate(mean, low, high, count)


# --- terminal --------------------------------------------------------------------------------------------------


def test_terminal_table_by_hand():
    summary = {
        Key("ours", "l1_percent", BINS[0], ALL): one(1.234, 1, 2, 3),
        Key("ours", "l1_percent", ALL, ALL): one(2.0, 1, 3, 12),
        Key("ours", "l1_percent", BINS[1], "free"): one(9.0),  # of one border: not in this table
        Key("telea", "l1_percent", BINS[0], ALL): one(1.231, 1, 2, 3),
        Key("telea", "l1_percent", ALL, ALL): one(1.5, 1, 3, 12),
        Key("telea", "ssim", ALL, ALL): one(0.12345),
        Key("dropped", "psnr", ALL, ALL): one(7.0),
    }
    assert terminal_table(summary, METHODS).split("\n") == [
        "L1 % (lower is better)",
        "       0.01-0.1        all",
        "ours       1.23*      2.00",
        "telea      1.23*      1.50*",  # equal to the best after rounding, so also marked
        "pairs         3         12",
        "",
        "SSIM (higher is better)",
        "            all",
        "telea     0.123",  # no competitor, so no mark
        "pairs         3",
    ]


def test_the_best_is_the_highest_where_higher_is_better(rows):
    lines = terminal_table(summarise(rows), METHODS).split("\n")
    assert [line.count("*") for line in lines if line.startswith("ours")] == [7, 7]
    swapped = summarise(row._replace(scores={"psnr": -row.scores["psnr"]}) for row in rows)
    assert [line.count("*") for line in terminal_table(swapped, METHODS).split("\n")[2:4]] == [0, 7]


def test_a_gap_and_counts_that_differ():
    summary = {
        Key("ours", "fid", BINS[0], ALL): one(12.5, count=3),
        Key("ours", "fid", BINS[1], ALL): one(1.0, count=3),
        Key("telea", "fid", BINS[1], ALL): one(-0.001, count=5),
    }
    assert terminal_table(summary, METHODS).split("\n")[1:] == [
        "       0.01-0.1    0.1-0.2",
        "ours      12.50       1.00",
        "telea         –       0.00*",
        "pairs         3        3-5",
    ]


def test_long_names_fit_into_the_terminal(rows):
    names = {"ours": "runs/" + "long/" * 30 + "a.safetensors", "telea": "runs/" + "long/" * 30 + "b.safetensors"}
    summary = {key._replace(method=names[key.method]): value for key, value in summarise(rows).items()}
    lines = terminal_table(summary, list(names.values())).split("\n")
    assert max(map(len, lines)) == 120
    assert re.match(r"runs/long/\S+…\S+/a\.safetensors  ", lines[2])
    assert lines[2].index("*") == lines[8].index("*") == 53  # of L1 and of PSNR


def test_nothing_is_an_empty_text():
    assert terminal_table({}, METHODS) == ""
    assert "|" not in summary_markdown({}, {}, METHODS, {})


# --- Markdown --------------------------------------------------------------------------------------------------


def test_tables_of_the_paper_s_layout(markdown):
    found = tables(markdown)
    assert [before for before, _ in found[:4]] == [
        "## L1 % (lower is better)",
        "N and B together:",
        "## PSNR dB (higher is better)",
        "N and B together:",
    ]
    heads, ours, telea, pairs, _ = found[0][1]
    assert heads == ["method", *(f"{bin_}<br>{letter}" for bin_ in (*BINS, ALL) for letter in "NB")]
    assert [row[0] for row in found[0][1]] == [
        "method",
        "ours",
        "telea",
        "pairs",
        "*PConv, QUOTED from the paper; the other cells: its Table 1, arXiv 1804.07723*",
    ]
    at = heads.index("0.2-0.3<br>B")
    assert ours[at] == f"**2.11**<br>[2.10,{NBSP}2.12]"  # mean of 2.10 and 2.12, twice each
    assert telea[at] == f"3.11<br>[3.10,{NBSP}3.12]"
    assert (pairs[at], pairs[-1]) == ("4", "24")
    together = found[1][1]
    assert together[0] == ["method", *BINS, ALL]
    assert together[1][3] == f"**2.06**<br>[2.05,{NBSP}2.07]"
    assert [row[0] for row in together] == ["method", "ours", "telea", "pairs"]  # the paper has no such figures
    assert (together[3][3], together[3][-1]) == ("8", "48")


def test_only_figures_checked_against_the_paper_are_quoted(markdown):
    """Repeats the allowed figures: add one only after checking it in the paper."""
    checked = {
        "L1 % (lower is better)": {"0.1-0.2<br>B": "1.09", "0.2-0.3<br>B": "1.88", "0.3-0.4<br>B": "2.84"},
        "PSNR dB (higher is better)": {"0.1-0.2<br>B": "28.32", "0.2-0.3<br>B": "25.25", "0.3-0.4<br>B": "22.89"},
    }
    for before, (heads, *rows) in tables(markdown):
        quoted = [row for row in rows if "QUOTED" in row[0]]
        expected = checked.get(before.removeprefix("## "))
        assert len(quoted) == bool(expected)
        if expected:
            assert {head: cell for head, cell in zip(heads[1:], quoted[0][1:]) if cell != "–"} == expected
    assert PAPER["ssim"] == {"0.1-0.2": "0.870", "0.2-0.3": "0.779", "0.3-0.4": "0.689"}
    assert PAPER.keys() == {"l1_percent", "psnr", "ssim"}
    assert markdown.count("Only figures checked against the paper are quoted") == 1


def test_the_quoted_row_needs_a_column_it_has_a_figure_for(rows):
    def of(chosen):
        return summary_markdown(summarise(chosen), {}, METHODS, {})

    assert "QUOTED" not in of([row for row in rows if row.bin == BINS[0]])
    assert "QUOTED" not in of([row for row in rows if row.border == "free"])
    assert "QUOTED" in of([row for row in rows if row.border == "any" and row.bin == BINS[1]])


def test_bins_and_borders_that_are_missing_have_no_columns(rows):
    chosen = [row for row in rows if row.border == "any" and row.bin in BINS[2:4]]
    found = tables(summary_markdown(summarise(chosen), {}, METHODS, {}))
    assert [before[:2] for before, _ in found] == ["##", "##"]  # a table of both borders together would be the same
    assert found[0][1][0] == ["method", "0.2-0.3<br>B", "0.3-0.4<br>B", "all<br>B"]


def test_a_value_of_a_set_has_no_interval_and_a_gap_a_dash():
    summary = {
        Key("ours", "fid", BINS[0], "free"): one(12.346),
        Key("ours", "fid", BINS[0], "any"): one(1),
        Key("telea", "fid", BINS[0], "free"): one(3.0),
        Key("ours", "lpips", ALL, ALL): one(0.5),  # only for both borders together
    }
    lpips, fid, fid_together = tables(
        summary_markdown(summary | {Key("ours", "fid", ALL, ALL): one(5.0)}, {}, METHODS, {})
    )
    assert lpips == ("N and B together:", [["method", "all"], ["ours", "0.5000"], ["pairs", "3"]])
    assert fid[1][1:3] == [
        ["ours", "12.35", "1.00"],
        ["telea", "**3.00**", "–"],
    ]
    assert fid_together[1][1] == ["ours", "5.00"]


def test_differences_to_the_first_method(markdown, rows):
    before, (heads, *lines) = tables(markdown)[-3]  # two metrics by column follow
    assert before.startswith("Each method minus ours, pair by pair, over all bins and borders")
    assert heads == ["method", "L1 % (lower is better)", "PSNR dB (higher is better)"]
    assert lines == [["telea", f"**+1.000**<br>[+1.000,{NBSP}+1.000]", f"**-1.000**<br>[-1.000,{NBSP}-1.000]"]]


def test_differences_by_column(markdown):
    before, (heads, *lines) = tables(markdown)[-2]
    columns = [f"{bin_}<br>{letter}" for bin_ in (*BINS, "all") for letter in "NB"]
    assert heads == ["method", *columns]
    assert lines == [["telea", *[f"**+1.000**<br>[+1.000,{NBSP}+1.000]"] * len(columns)]]
    assert before == (
        "L1 % (lower is better), by column. ours is better than each of the others in 12 of 12 bins and borders, in 12"
        " of them with intervals that leave out 0."
    )


def test_ahead_means_of_every_other_method_and_beyond_the_interval():
    bins = [(bin_, border) for bin_ in BINS[:2] for border in BORDERS]
    better = {Key("telea", "psnr", *column): one(-0.5, -0.9, -0.1) for column in bins}
    other = {Key("mean", "psnr", *column): one(-0.5, -0.9, -0.1) for column in bins}
    other[Key("mean", "psnr", *bins[0])] = one(0.1, -0.2, 0.4)  # better than ours
    other[Key("mean", "psnr", *bins[1])] = one(-0.1, -0.2, 0.4)  # uncertain
    text = summary_markdown({}, better | other, ("ours", "telea", "mean"), {})
    assert "ours is better than each of the others in 3 of 4 bins and borders, in 2 of them with" in text


@pytest.mark.parametrize(
    ("estimate", "cell"),
    [
        (one(0.5, 0.001, 0.9), f"**+0.500**<br>[+0.001,{NBSP}+0.900]"),
        (one(0.5, -0.1, 0.9), f"+0.500<br>[-0.100,{NBSP}+0.900]"),
        (one(-0.5, -0.9, -0.1), f"**-0.500**<br>[-0.900,{NBSP}-0.100]"),
        (one(0.0, 0.0, 0.0), f"+0.000<br>[+0.000,{NBSP}+0.000]"),
        (one(0.5), "+0.500"),  # of a single image
    ],
)
def test_a_difference_is_marked_where_its_interval_leaves_out_0(estimate, cell):
    markdown = summary_markdown({}, {Key("telea", "psnr", ALL, ALL): estimate}, METHODS, {})
    assert tables(markdown)[0][1][1] == ["telea", cell]


def test_without_a_second_method_there_are_no_differences(rows):
    alone = [row for row in rows if row.method == "ours"]
    text = summary_markdown(summarise(alone), differences(alone, "ours"), ["ours"], SETTINGS)
    assert "Differences" not in text
    assert "**" not in text  # and marks no best value


def test_settings_and_names_stand_as_they_are(markdown):
    assert markdown.endswith("## Settings\n\n- images: 4 of photos\n- command: python evaluate.py --out a\\_b\n")
    hostile = "a|b`<i>*c*_[d](e)\nf"
    summary = {Key(hostile, "psnr", ALL, "any"): one(1.0)}
    ((_, rows),) = tables(summary_markdown(summary, {}, [hostile], {}))
    assert rows[1][0] == r"a\|b\`\<i\>\*c\*\_\[d\](e) f"


# --- JSON ------------------------------------------------------------------------------------------------------


def test_json_and_back(rows):
    summary, others = summarise(rows), differences(rows, "ours")
    written = json.loads(json.dumps(summary_json(summary, others, METHODS, SETTINGS), allow_nan=False))
    assert written == summary_json(summary, others, METHODS, SETTINGS)

    def back(records):
        return {
            Key(*(record[field] for field in Key._fields)): Estimate(*(record[field] for field in Estimate._fields))
            for record in records
        }

    assert back(written["estimates"]) == summary
    assert back(written["differences"]) == others
    assert len(written["estimates"]) == len(summary)
    assert set(written["estimates"][0]) == {*Key._fields, *Estimate._fields}
    assert written["methods"] == list(METHODS)
    assert written["metrics"] == {
        "l1_percent": {"label": "L1 %", "higher_is_better": False},
        "psnr": {"label": "PSNR dB", "higher_is_better": True},
    }
    assert written["settings"] == SETTINGS


def test_json_has_null_for_what_is_no_number():
    summary = {Key("ours", "fid", ALL, ALL): one(float("nan")), Key("ours", "psnr", ALL, ALL): one(np.inf, 1.0, 2.0)}
    written = summary_json(summary, {}, METHODS, {})
    json.dumps(written, allow_nan=False)
    assert [(each["metric"], each["mean"], each["low"]) for each in written["estimates"]] == [
        ("psnr", None, 1.0),
        ("fid", None, None),
    ]


def test_every_metric_can_be_shown():
    summary = {
        Key("ours", metric, bin_, border): one(1.0, 0.5, 1.5)
        for metric in METRICS
        for bin_ in BINS
        for border in BORDERS
    }
    text = summary_markdown(summary, {}, METHODS, {})
    assert all(f"## {metric.label} (" in text for metric in METRICS.values())
