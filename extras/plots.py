"""Offline HTML pages of interactive curves, drawn from the CSV files that runs log.

A run's own page shows every metric in its file, also those of groups unknown here; a comparison
shows the wins of several runs. `page.html` draws what is put together here.
"""

import base64
import contextlib
import functools
import gzip
import html
import json
import re
import subprocess
import time
from itertools import zip_longest
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd
from plotly.offline import get_plotlyjs

from checkpoint import write_atomically
from config import COMPLETE, changes, load_config
from machine import explained
from matches import wilson_interval
from utils import UserError

COLUMNS = Path(__file__).resolve().parent.parent / "docs" / "columns.md"
AXES = ("gradient_steps", "environment_steps", "minutes")
# A line is told by its colour (seven, apart also for the colour-blind), its dashes and its markers.
COLORS = "#2f7ed8 #e0703a #5aaf9a #851ded #6e5235 #f04c75 #91467e".split()
DASHES, SYMBOLS = ("solid", "dash", "dot", "dashdot"), ("circle", "square", "diamond", "x", "star")
RESULTS = {"wins": "#2f7ed8", "draws": "#8f959c", "losses": "#e0703a"}
FORMER = ("oldest", "middle", "newest")  # former selves: others in every run, at every evaluation
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
    """Returns the rows with any of the `measures`; `UserError` if there are none, or no file."""
    if not Path(csv_path).is_file():
        raise UserError(f"There is no file {csv_path}.")
    with explained(f"{csv_path} can't be read as a CSV", OSError, ValueError):
        frame = read_metrics(csv_path)
    columns = measures(frame)
    if not columns or not set(AXES) <= set(frame.columns) or frame[columns].isna().all(axis=None):
        raise UserError(f"{csv_path} holds no evaluations.")
    frame[columns] = frame[columns].round(6)  # logged with 7 digits: 90% must not read 89.99999%
    return frame.dropna(subset=columns, how="all").reset_index(drop=True)


def read_runs(csv_paths):
    """Returns (label, seed, evaluations) of each <label>_seed<n>.csv or <label>.csv, seed None.

    Files of equal names are told apart by their folders. Raises `UserError` for bad ones.
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
    return label if seed is None else f"{label}, seed {seed}"


def opponents(frame):
    """Returns the names of the opponents of whom wins and numbers of games are known."""
    named = [re.fullmatch("evaluation/(.+)/wins", column) for column in frame.columns]
    return [name[1] for name in named if name and f"evaluation/{name[1]}/games" in frame]


def measures(frame):
    """Returns the columns by which runs are compared: wins against who is the same, the return."""
    wins = [f"evaluation/{name}/wins" for name in opponents(frame) if name not in FORMER]
    return wins + [column for column in ("evaluation/return",) if column in frame]


def titled(column):
    opponent, _, kind = column.removeprefix("evaluation/").rpartition("/")
    return f"wins against {opponent}" if kind == "wins" else kind


def results(frame, column):
    """Returns axes, value, its games (or 0), and low and high: wins have a Wilson interval."""
    games = frame.get(column.removesuffix("wins") + "games", 0)
    points = frame[list(AXES)].assign(value=frame[column], games=games).dropna()
    low = high = points["value"]
    if (points["games"] > 0).all():
        low, high = wilson_interval(points["value"], points["games"])
    return points.assign(low=low, high=high)


def mean_over_seeds(points):
    """Returns the mean results of runs that differ by seed, at gradient steps all have reached.

    The 95% interval is Student's over the seeds, but never narrower than that of all their games.
    """
    columns = ["environment_steps", "minutes", "value", "games"]
    each = points.pivot_table(columns, "gradient_steps", "name")
    each = each.interpolate("index", limit_area="inside").dropna()
    seeds, mean = each["value"].shape[1], each.T.groupby(level=0).mean().T.reset_index()
    mean["games"] *= seeds
    margin = STUDENT[min(seeds - 2, len(STUDENT) - 1)] * each["value"].std(axis=1) / seeds**0.5
    margin = margin.fillna(0).to_numpy()  # of a single seed
    mean = results(mean.rename(columns={"value": "wins"}), "wins")
    mean["low"] = np.minimum(mean["low"], mean["value"] - margin)
    mean["high"] = np.maximum(mean["high"], mean["value"] + margin)
    if (mean["games"] > 0).all():
        mean["low"], mean["high"] = mean["low"].clip(0), mean["high"].clip(upper=1)
    return mean.assign(name=f"{points['label'].iloc[0]}, mean of {seeds} seeds")


def in_words(point):
    """Returns a result with its interval, if it has one."""
    if point.games:
        return f"{point.value:.1%} ({point.low:.1%} to {point.high:.1%}, {point.games:.0f} games)"
    interval = f" ({point.low:.4g} to {point.high:.4g})" if point.high > point.low else ""
    return f"{point.value:.4g}{interval}"


def extremes(values, points=1000):
    """Thins a curve: the lowest and the highest point of each stretch stay, so that spikes do."""
    if len(values) <= points // 2:
        return values
    stretches = values.groupby(np.arange(len(values)) * (points // 2) // len(values))
    return values.loc[np.union1d(stretches.idxmin(), stretches.idxmax())]


def trace(values, name, kind, color, width=2.5, look=0, **style):
    """Returns a Plotly line, with row numbers of the CSV for x: the page looks up the axis.

    `kind`: all but "fixed" lines can be switched off. `look`: a number for dashes and markers.
    """
    return {
        "name": name.replace("_", " "),
        "kind": kind,
        "rows": values.index.tolist(),
        "y": [float(f"{value:.5g}") for value in values],
        "mode": "lines+markers" if len(values) < 30 and width else "lines",
        "line": {"width": width, "color": color, "dash": DASHES[look % len(DASHES)]},
        "marker": {"size": 2 + 1.5 * width, "symbol": SYMBOLS[look % len(SYMBOLS)]},
        **style,
    }


def result_lines(points, name, kind, color, group, look=0):
    """Returns results as a line, bold in the band of intervals, or pale if its kind is "raw"."""
    style = {"legendgroup": group, "hovertemplate": "%{text}", "look": look}
    style["text"] = [in_words(point) for point in points.itertuples()]
    if kind == "raw":
        return [trace(points["value"], name, kind, color, 1, opacity=0.5, **style)]
    edge = {"legendgroup": group, "showlegend": False, "hoverinfo": "skip"}
    fill = {"fill": "tonexty", "fillcolor": color + "33"}
    low, high = (trace(points[end], "", kind, color, 0, **edge) for end in ("low", "high"))
    return [low, high | fill, trace(points["value"], name, kind, color, **style)]


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


@functools.cache
def documented():
    """Returns pattern of a column -> (unit, what it is, what is healthy), of docs/columns.md."""
    rows = re.findall(r"^\| `(.+)` \| (.+?) \| (.+?) \|(.*)\|$", COLUMNS.read_text("utf-8"), re.M)
    return {
        re.sub("<.+?>", ".+", re.escape(name)): (unit, text, healthy.strip())
        for name, unit, text, healthy in rows
    }


def meaning(column):
    for name, (unit, text, healthy) in documented().items():
        if re.fullmatch(name, column):
            return f"{column} [{unit}]: {text}" + (f"\nhealthy: {healthy}" if healthy else "")
    return column


def panel(title, columns, traces, note="", wide=False, **yaxis):
    """Returns what the page draws in one frame; columns: of the CSV."""
    words = {"title": title.replace("_", " "), "help": "\n".join(map(meaning, columns))}
    return dict(columns=list(columns), traces=traces, note=note, wide=wide, yaxis=yaxis, **words)


def evaluation_panel(frame, opponent):
    known = (f"evaluation/{opponent}/{name}" for name in (*RESULTS, "games"))
    columns = [column for column in known if column in frame]
    traces = result_lines(results(frame, columns[0]), "wins", "fixed", RESULTS["wins"], "wins")
    note = "".join(f"wins {text}" for text in traces[-1]["text"][-1:])
    for look, column in enumerate(columns[1:-1], 1):
        name = column.split("/")[-1]
        traces.append(trace(frame[column].dropna(), name, "fixed", RESULTS[name], 1.5, look))
    return panel(f"against {opponent}", columns, traces, note, wide=True, **SHARES)


def curves_panel(frame, title, metrics):
    """Returns a panel of metrics (name -> column) of one scale, raw (pale) and smoothed (bold)."""
    data, traces, note = frame[list(metrics.values())], [], ""
    for look, (name, column) in enumerate(metrics.items()):
        values, color = data[column].dropna(), RESULTS.get(name, COLORS[look % len(COLORS)])
        smooth = values.ewm(span=max(5, 0.03 * len(values))).mean()  # over the last 3%, at least 5
        raw = {"legendgroup": name, "opacity": 0.35}
        traces.append(trace(extremes(values), f"{name} (raw)", "raw", color, 1, **raw))
        traces.append(trace(extremes(smooth), name, "smoothed", color, 2.5, look, legendgroup=name))
        if len(metrics) == 1 and len(values):
            note = f"{values.iloc[-1]:.4g}"
    return panel(title, metrics.values(), traces, note, **focus(data))


@functools.cache
def commit():
    """Returns the commit of this code, as far as it is known."""
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=, changed"]
    with contextlib.suppress(OSError):
        told = subprocess.run(command, cwd=COLUMNS.parent, capture_output=True)
        return told.stdout.decode().strip() or "unknown"
    return "unknown"


def origin(config):
    """Returns a run, its seed, and how its config differs from the complete one, as HTML."""
    different = changes(load_config(COMPLETE), config)
    keys = [f"{key}={new}" for key, _, new in different if key not in ("run", "seed")]
    text = f"run {config.run}, seed {config.seed}; hockey.yml {'with ' if keys else ''}"
    return f"<br><small>{html.escape(text + ', '.join(keys))}</small>"


def write_page(csv_path, html_path, config=None):
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
    text += origin(config) if config else ""
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


def compared(runs):
    """Returns the results of runs (label, seed, evaluations) and their means over seeds, as points.

    They are of the `measures` that all of the runs have, or `UserError`; means are "smoothed".
    """
    labels, parts = [label for label, _, _ in runs], []
    common = [column for column in measures(runs[0][2]) if all(column in run[2] for run in runs)]
    if not common:
        raise UserError("These runs were not evaluated alike: against no common opponent.")
    for label, seed, frame in runs:
        whose = {"label": label, "name": run_name(label, seed)}
        whose["kind"] = "raw" if labels.count(label) > 1 else "fixed"
        parts += [results(frame, column).assign(column=column, **whose) for column in common]
    points = pd.concat(parts)
    means = [
        mean_over_seeds(seeds).assign(column=column, label=label, kind="smoothed")
        for (column, label), seeds in points.groupby(["column", "label"], sort=False)
        if seeds["name"].nunique() > 1
    ]
    return pd.concat([points, *means], ignore_index=True)


def final_table(points):
    """Returns rows of texts below a head: each label's last evaluation, and the mean of all."""
    columns = list(points["column"].unique())
    heads = [head for column in columns for head in (titled(column), "mean of the whole run")]
    rows = [["", "seeds", *heads, "gradient steps", "minutes"]]
    for label, shown in points[points["kind"] != "smoothed"].groupby("label", sort=False):
        cells, kept = [], dict.fromkeys(("label", "environment_steps", "minutes"), "last")
        for _, each in shown.groupby("column", sort=False):
            seeds = each.groupby("name", as_index=False)
            whole = seeds.agg(kept | {"value": "mean", "games": "sum"})
            whole["gradient_steps"] = each["gradient_steps"].max()
            whole = mean_over_seeds(whole).iloc[0]
            ends = map(in_words, mean_over_seeds(each).tail(1).itertuples())
            cells += [next(ends, "no step in common"), in_words(whole)]
        cells += [f"{whole.gradient_steps:,.0f}", f"{whole.minutes:.1f}"]
        rows.append([label, str(shown["name"].nunique()), *cells])
    return rows


def write_comparison_page(points, html_path, title="comparison", table=(), about=""):
    """Writes a page of `compared` runs: `about`, curves, and a table of rows below a head."""
    looks, panels = list(points["label"].unique()), []
    for column, shown in points.groupby("column", sort=False):
        traces = []
        for (label, name, kind), line in shown.groupby(["label", "name", "kind"], sort=False):
            look = looks.index(label)
            traces += result_lines(line, name, kind, COLORS[look % len(COLORS)], label, look)
        scale = SHARES if column.endswith("/wins") else {}
        panels.append(panel(titled(column), [column], traces, wide=True, **scale))
    lines, text, games = {}, "", points["games"][points["kind"] != "smoothed"]
    if games.min():
        counts = " to ".join(f"<b>{count:.0f}</b>" for count in sorted({games.min(), games.max()}))
        text = f"{counts} games per point; bands are 95% Wilson intervals."
    if (points["kind"] == "smoothed").any():
        lines = {"raw": "each seed", "smoothed": "mean over seeds"}
        text += " A mean's band is the 95% t-interval over its seeds: wide if they are few."
    text = f"{html.escape(about)}<br>{text}" if about else text
    write_curves(html_path, title, text, points, AXES[::-1], {"evaluation": panels}, lines, table)


def report(runs, html_path, title="comparison", about=""):
    """Prints what runs, as of `read_runs`, have come to, draws their page -> the points on it."""
    points = compared(runs)
    table = final_table(points)
    write_comparison_page(points, html_path, title, table, about)
    print(f"{aligned(table)}\nThe page: {html_path}")
    return points


def write_figure(points, path):
    """Writes `compared` runs as .svg, .pdf or .png; `UserError` if Matplotlib can't."""
    with explained("--out needs Matplotlib (pip install matplotlib)", ImportError):
        from matplotlib.figure import Figure
    labels, count = list(points["label"].unique()), points["column"].nunique()
    figure = Figure(figsize=(5 * count, 4), layout="constrained")
    places = figure.subplots(1, count, squeeze=False)[0]
    for (column, shown), axes in zip(points.groupby("column", sort=False), places, strict=True):
        for (label, name, kind), line in shown.groupby(["label", "name", "kind"], sort=False):
            look = labels.index(label)
            color, dash = COLORS[look % len(COLORS)], ("-", "--", ":", "-.")[look % 4]
            marker = "osDx*"[look % 5] if len(line) < 30 else ""
            x, style = line["environment_steps"], {"label": name, "linewidth": 2}
            if kind == "raw":
                style = {"alpha": 0.5, "linewidth": 0.8, "markersize": 2}
            else:
                axes.fill_between(x, line["low"], line["high"], color=color, alpha=0.2, linewidth=0)
            axes.plot(x, line["value"], dash + marker, color=color, **style)
        axes.set(title=titled(column), xlabel="environment steps")
        axes.grid(alpha=0.3)
        if column.endswith("/wins"):
            axes.set_ylim(SHARES["range"])
            axes.yaxis.set_major_formatter("{x:.0%}")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    form = Path(path).suffix[1:] or "svg"
    with explained(path, ValueError):
        write_atomically(path, lambda file: figure.savefig(file, format=form))


def write_curves(path, title, text, frame, axes, groups, lines, table=()):
    """Writes a page of curves over one of these columns (axes) of a frame, the first at first.

    groups: heading -> panels; lines: kind -> label of a switch; table: rows of texts below.
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


@functools.lru_cache(2)  # Plotly, which every page asks for, is compressed once
def packed(text):
    """Returns a text compressed for a page: Plotly alone is 4.8 MB, and phones open pages."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def plain(tensor):
    """Returns a tensor as JSON takes it, to four digits; what is not finite becomes None."""
    values = np.round(np.asarray(tensor.cpu(), np.float64), 4)
    return np.where(np.isfinite(values), values, None).tolist()


def fill_template(html_path, data, template="page.html", **parts):
    """Writes a page of `parts` (HTML) and of data to draw, below `head.html`; or `UserError`."""
    files = (Path(__file__).with_name(name) for name in ("head.html", template))
    page = Template("".join(file.read_text("utf-8") for file in files)).substitute(
        parts,
        time=f"{time.strftime('%Y-%m-%d %H:%M')} by the code of commit {commit()}",
        data=packed(json.dumps(data, separators=(",", ":"), default=plain)),
        plotly=packed(get_plotlyjs()) if data else "",
    )
    write_atomically(html_path, lambda file: file.write_text(page, encoding="utf-8"))
