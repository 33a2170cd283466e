"""Offline HTML pages of interactive curves, drawn from the CSV files that runs log.

A run's own page shows every metric in its file, also those of groups unknown here; a comparison
shows the wins of several runs. `page.html` draws what is put together here. Measuring, averaging
and logging the numbers, and deciding when to draw them again, are left to others.
"""

import base64
import functools
import gzip
import html
import json
import re
import time
from itertools import cycle, zip_longest
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd
from plotly.offline import get_plotlyjs

from checkpoint import write_atomically
from matches import wilson_interval
from utils import UserError, one_line

AXES = ("gradient_steps", "environment_steps", "minutes")
COLORS = "#2f7ed8 #e0703a #3a9d6e #a05fc0 #c9a227 #d1495b #3fa7b5 #8a7763 #d477a8 #7d8694".split()
RESULTS = {"wins": "#2f7ed8", "draws": "#8f959c", "losses": "#e0703a"}
# Metrics of equal scale which are read against each other: title of their panel -> columns.
SHARED = {
    "KL": "world_model/(kl_.*|free_nats)",
    "results": "train/(wins|draws|losses)",
    "where the time goes, in seconds": "time/.*",
    "share of games": "opponents/.*",
    "snapshots' age in gradient steps": "pool/.*",
}
SHARES = {"range": [-0.02, 1.02], "tickformat": ".0%", "tickvals": [0, 0.25, 0.5, 0.8, 0.9, 1]}
FIRST = ("evaluation", "train", "world_model", "behavior")  # groups, what matters most
# 97.5% quantiles of Student's t distribution for 2, 3, ... seeds; the last one also for more.
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def read_metrics(csv_path):
    """Returns the logged numbers, one row per logging point; a file without rows is no error."""
    try:
        frame = pd.read_csv(csv_path)
    except pd.errors.EmptyDataError:
        frame = pd.DataFrame(columns=AXES)
    # A diverged run logs inf, and JSON knows neither that nor a half-written cell.
    return frame.apply(pd.to_numeric, errors="coerce").astype(float).where(np.isfinite)


def read_evaluations(csv_path):
    """Returns the rows with evaluations: axes, evaluation/<opponent>/wins and .../games.

    Raises `UserError` if the file is missing, unreadable or has none.
    """
    if not Path(csv_path).is_file():
        raise UserError(f"There is no file {csv_path}.")
    try:
        frame = read_metrics(csv_path)
    except (OSError, ValueError) as error:
        raise UserError(f"{csv_path} can't be read as a CSV: {one_line(error)}") from None
    wins = [f"evaluation/{name}/wins" for name in opponents(frame)]
    if not wins or not set(AXES) <= set(frame.columns) or frame[wins].isna().all(axis=None):
        raise UserError(f"{csv_path} holds no evaluations of games won.")
    games = [f"evaluation/{name}/games" for name in opponents(frame)]
    frame[wins] = frame[wins].round(6)  # logged with 7 digits: 90% must not read 89.99999%
    return frame[[*AXES, *wins, *games]].dropna(subset=wins, how="all").reset_index(drop=True)


def read_runs(csv_paths):
    """Returns (label, seed, evaluations) of each of several runs.

    <label>_seed<n>.csv holds seed n; any other name is a label without a seed. Files of equal
    names are told apart by their folders. Raises `UserError` as `read_evaluations` does.
    """
    paths = [Path(path) for path in dict.fromkeys(csv_paths)]
    are_unique = len({path.stem for path in paths}) == len(paths)
    runs = []
    for path in paths:
        name = path.stem if are_unique else str(path.with_suffix(""))
        seeded = re.fullmatch(r"(.+?)[_-]seed[_-]?(\d+)", name)
        label, seed = (seeded[1], int(seeded[2])) if seeded else (name, None)
        runs.append((label, seed, read_evaluations(path)))
    return runs


def run_name(label, seed):
    """Returns what a legend calls a run."""
    return label if seed is None else f"{label}, seed {seed}"


def opponents(frame):
    """Returns the names of the opponents of whom wins and numbers of games are known."""
    named = [re.fullmatch("evaluation/(.+)/wins", column) for column in frame.columns]
    return [name[1] for name in named if name and f"evaluation/{name[1]}/games" in frame]


def results_against(frame, opponent):
    """Returns axes, wins, games, maybe draws and losses; low and high: 95% Wilson interval."""
    names = {f"evaluation/{opponent}/{value}": value for value in (*RESULTS, "games")}
    points = frame[[*AXES, *frame.columns.intersection(list(names))]].rename(columns=names).dropna()
    low, high = wilson_interval(points["wins"], points["games"])
    return points.assign(low=low, high=high)


def mean_over_seeds(points):
    """Returns the mean results of runs that differ by seed, at gradient steps all have reached.

    The interval is Student's over the seeds, at 95%, and never narrower than that of all games.
    """
    columns = ["environment_steps", "minutes", "wins", "games"]
    each = points.pivot_table(columns, "gradient_steps", "name")
    each = each.interpolate("index", limit_area="inside").dropna()
    seeds, mean = each["wins"].shape[1], each.T.groupby(level=0).mean().T
    mean["games"] *= seeds
    margin = STUDENT[min(seeds - 2, len(STUDENT) - 1)] * each["wins"].std(axis=1) / seeds**0.5
    low, high = wilson_interval(mean["wins"], mean["games"])
    mean["low"] = np.minimum(low, mean["wins"] - margin).clip(0)
    mean["high"] = np.maximum(high, mean["wins"] + margin).clip(upper=1)
    return mean.reset_index().assign(name=f"{points['label'].iloc[0]}, mean of {seeds} seeds")


def extremes(values, points=1000):
    """Thins a curve: the lowest and the highest point of each stretch stay, so that spikes do."""
    if len(values) <= points // 2:
        return values
    stretches = values.groupby(np.arange(len(values)) * (points // 2) // len(values))
    return values.loc[np.union1d(stretches.idxmin(), stretches.idxmax())]


def trace(values, name, kind, color, width=2.5, **style):
    """Returns a Plotly line, with row numbers of the CSV for x: the page looks up the axis.

    `kind`: "raw" and "smoothed" lines can be switched off, "fixed" ones can't.
    """
    return {
        "name": name.replace("_", " "),
        "kind": kind,
        "rows": values.index.tolist(),
        "y": [float(f"{value:.5g}") for value in values],
        "mode": "lines+markers" if len(values) < 30 and width else "lines",
        "line": {"width": width, "color": color},
        "marker": {"size": 2 + 1.5 * width},
        **style,
    }


def wins_lines(points, name, kind, color, group):
    """Returns wins as a line, bold in the band of their intervals, or pale if its kind is "raw"."""
    wins, low, high = points["wins"], points["low"], points["high"]
    style = {"legendgroup": group, "hovertemplate": "%{text}"}
    style["text"] = [
        f"{row.wins:.1%} ({row.low:.1%} to {row.high:.1%}, {row.games:.0f} games)"
        for row in points.itertuples()
    ]
    if kind == "raw":
        return [trace(wins, name, kind, color, 1, opacity=0.5, **style)]
    edge = {"legendgroup": group, "showlegend": False, "hoverinfo": "skip"}
    fill = {"fill": "tonexty", "fillcolor": color + "33"}
    band = [trace(low, "", kind, color, 0, **edge), trace(high, "", kind, color, 0, **edge, **fill)]
    return [*band, trace(wins, name, kind, color, **style)]


def focus(data):
    """Returns a y axis without rare outliers, which would flatten the rest, or one for all."""
    values = data.unstack().dropna()
    if len(values) < 50:
        return {}
    # The newest rows always count: a run that blows up has to be seen.
    shown = pd.concat([values.quantile([0.05, 0.95]), data.tail(len(data) // 20 + 1).unstack()])
    low, high = shown.min(), shown.max()
    margin = 0.25 * (high - low)
    is_clipped = high > low and values.max() - values.min() > 3 * (high - low)
    return {"range": [low - margin, high + margin]} if is_clipped else {}


def panel(title, columns, traces, note="", wide=False, **yaxis):
    """Returns what the page draws in one frame; columns: of the CSV."""
    parts = {"title": title.replace("_", " "), "note": note, "wide": wide}
    return parts | {"columns": list(columns), "traces": traces, "yaxis": yaxis}


def evaluation_panel(frame, opponent):
    """Returns the panel of wins, draws and losses against an opponent."""
    points = results_against(frame, opponent)
    traces = wins_lines(points, "wins", "fixed", RESULTS["wins"], "wins")
    note = "".join(f"wins {text}" for text in traces[-1]["text"][-1:])
    for name in [name for name in ("draws", "losses") if name in points]:
        traces.append(trace(points[name], name, "fixed", RESULTS[name], 1.5))
    columns = [f"evaluation/{opponent}/{name}" for name in (*RESULTS, "games") if name in points]
    return panel(f"against {opponent}", columns, traces, note, wide=True, **SHARES)


def curves_panel(frame, title, metrics):
    """Returns a panel of metrics (name -> column) of one scale, raw (pale) and smoothed (bold).

    The newest value of a single metric is its note.
    """
    data, traces, note = frame[list(metrics.values())], [], ""
    for (name, column), color in zip(metrics.items(), cycle(COLORS), strict=False):
        values, color = data[column].dropna(), RESULTS.get(name, color)
        smooth = values.ewm(span=max(5, 0.03 * len(values))).mean()  # over the last 3%, at least 5
        raw = {"legendgroup": name, "opacity": 0.35}
        traces.append(trace(extremes(values), f"{name} (raw)", "raw", color, 1, **raw))
        traces.append(trace(extremes(smooth), name, "smoothed", color, legendgroup=name))
        if len(metrics) == 1 and len(values):
            note = f"{values.iloc[-1]:.4g}"
    return panel(title, metrics.values(), traces, note, **focus(data))


def write_page(csv_path, html_path):
    """Writes the page of a run's CSV file: its metrics `group/name` by group."""
    frame, groups = read_metrics(csv_path), {group: [] for group in FIRST}
    for opponent in opponents(frame):
        groups["evaluation"].append(evaluation_panel(frame, opponent))
    text = "There is nothing yet: the run has not logged any numbers."
    if len(frame):
        parts = [f"<b>{frame[axis].iloc[-1]:,.0f}</b> {axis.replace('_', ' ')}" for axis in AXES]
        for shown in groups["evaluation"]:
            wins = shown["note"].split(" (")[0]
            parts.append(f"{html.escape(shown['title'])} <b>{wins}</b>")
        text = " · ".join(parts)
    drawn = [column for shown in groups["evaluation"] for column in shown["columns"]]
    shared = {}  # (group, title) -> name -> column
    for column in frame.columns.drop([*AXES, *drawn]):
        group, _, name = column.partition("/") if "/" in column else ("other", "", column)
        titles = (title for title, columns in SHARED.items() if re.fullmatch(columns, column))
        shared.setdefault((group, next(titles, name)), {})[name] = column
    for (group, title), metrics in shared.items():
        groups.setdefault(group, []).append(curves_panel(frame, title, metrics))
    lines = {"raw": "raw", "smoothed": "smoothed"}
    write_curves(html_path, Path(csv_path).stem, text, frame, AXES, groups, lines)


def write_comparison_page(runs, html_path, title="comparison", table=()):
    """Writes a page of the wins of several runs (label, seed, evaluations) side by side.

    Runs of one label are seeds of one experiment and share a colour: their mean is drawn too.
    `table` (rows of texts, the first one is the head) stands below the curves.
    """
    labels, parts = [label for label, _, _ in runs], []
    for label, seed, frame in runs:
        whose = {"label": label, "name": run_name(label, seed)}
        whose["kind"] = "raw" if labels.count(label) > 1 else "fixed"
        for name in opponents(frame):
            parts.append(results_against(frame, name).assign(opponent=name, **whose))
    points = pd.concat(parts)
    fewest, most = points["games"].min(), points["games"].max()
    text = f"<b>{fewest:.0f}</b> " + (f"to <b>{most:.0f}</b> " if most > fewest else "")
    text += "games per point; bands are 95% Wilson intervals."
    means = [
        mean_over_seeds(seeds).assign(opponent=opponent, label=label, kind="smoothed")
        for (opponent, label), seeds in points.groupby(["opponent", "label"], sort=False)
        if seeds["name"].nunique() > 1
    ]
    if means:
        text += " A mean's band is the 95% t-interval over its seeds: wide if they are few."
    points = pd.concat([points, *means], ignore_index=True)
    colors = dict(zip(dict.fromkeys(labels), cycle(COLORS), strict=False))
    panels = []
    for opponent, shown in points.groupby("opponent", sort=False):
        traces = []
        for (label, name, kind), line in shown.groupby(["label", "name", "kind"], sort=False):
            traces += wins_lines(line, name, kind, colors[label], label)
        column = f"evaluation/{opponent}/wins"
        panels.append(panel(f"wins against {opponent}", [column], traces, wide=True, **SHARES))
    lines = {"raw": "each seed", "smoothed": "mean over seeds"} if means else {}
    groups = {"evaluation": panels}
    write_curves(html_path, title, text, points, AXES[::-1], groups, lines, table)


def write_curves(path, title, text, frame, axes, groups, lines, table=()):
    """Writes a page of curves over one of these columns (axes) of a frame, the first at first.

    groups: heading -> panels; lines: kind -> label of those that can be switched on and off;
    table: rows of texts below the curves.
    """
    x = frame[list(axes)].round(3).astype(object)
    data = {"axes": x.where(x.notna(), None).to_dict("list"), "lines": lines}
    data["groups"] = {name.replace("_", " "): panels for name, panels in groups.items() if panels}
    fill_template(path, data, title=html.escape(title), summary=text, tables=table_markup(table))


def table_markup(rows):
    """Returns rows of texts as an HTML table, if there are any; the first row is its head."""
    lines = []
    for row, kind in zip(rows, ["th"] + len(rows) * ["td"], strict=False):
        cells = (f"<{kind}>{html.escape(text)}</{kind}>" for text in row)
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<figure class='table'><table>{''.join(lines)}</table></figure>" if lines else ""


def aligned(rows):
    """Returns rows of texts (of several lines each, maybe) as a table for the console."""
    lines = []
    for row in rows:
        lines += zip_longest(*(cell.split("\n") for cell in row), fillvalue="")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("   ".join(map(str.ljust, cells, widths)).rstrip() for cells in lines)


def packed(text):
    """Returns a text compressed for a page: Plotly alone is 4.8 MB, and phones open pages."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


@functools.cache
def packed_plotly():
    """Returns the Plotly library that comes with its Python package, compressed once."""
    return packed(get_plotlyjs())


def fill_template(html_path, data, template="page.html", **parts):
    """Writes a page of `parts` (HTML each) and of the data it draws, if any.

    In one step, so that no reader meets half a page. Raises `UserError` if it can't be written.
    """
    page = Template((Path(__file__).parent / template).read_text("utf-8")).substitute(
        parts,
        time=time.strftime("%Y-%m-%d %H:%M"),
        data=packed(json.dumps(data, separators=(",", ":"))),
        plotly=packed_plotly() if data else "",
    )
    write_atomically(html_path, lambda file: file.write_text(page, encoding="utf-8"))
