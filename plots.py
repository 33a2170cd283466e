"""Draw offline HTML pages of interactive curves from the CSV files that runs log.

A run's own page shows every metric in its file, also those of groups unknown here; a comparison
shows the wins of several runs; a league's page shows who beats whom. Measuring, averaging and
logging the numbers, and deciding when to draw them again, are left to others.
"""

import base64
import functools
import gzip
import html
import json
import re
import time
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd
from plotly.offline import get_plotlyjs

from utils import UserError, one_line, wilson_interval, write_atomically

AXES = {
    "gradient_steps": "gradient steps",
    "environment_steps": "environment steps",
    "minutes": "minutes",
}
COLORS = "#2f7ed8 #e0703a #3a9d6e #a05fc0 #c9a227 #d1495b #3fa7b5 #8a7763 #d477a8 #7d8694".split()
RESULTS = {"wins": "#2f7ed8", "draws": "#8f959c", "losses": "#e0703a"}
# Metrics of equal scale which are read against each other: title of their panel -> names.
SHARED = {
    "world_model": {"KL": ["kl_dynamics", "kl_representation", "free_nats"]},
    "train": {"results": list(RESULTS)},
    "pool": {"snapshots' age in gradient steps": ["oldest", "middle", "newest"]},
}


def read_metrics(csv_path) -> pd.DataFrame:
    """Read the logged numbers, one row per logging point; a file without rows is no error."""
    try:
        frame = pd.read_csv(csv_path)
    except pd.errors.EmptyDataError:
        frame = pd.DataFrame(columns=list(AXES))
    # A diverged run logs inf, and JSON knows neither that nor a half-written cell.
    frame = frame.apply(pd.to_numeric, errors="coerce").astype(float)
    return frame.replace([np.inf, -np.inf], np.nan)


def extremes(values: pd.Series, points: int = 2000) -> pd.Series:
    """Thin a curve to `points` points, the lowest and highest of each stretch: spikes survive."""
    if len(values) <= points:
        return values
    stretches = values.groupby(np.arange(len(values)) * (points // 2) // len(values))
    return values.loc[np.union1d(stretches.idxmin(), stretches.idxmax())]


def evenly(data, points: int = 500):
    """Thin smooth curves to `points` points, counted from the end: the newest one stays."""
    return data.iloc[:: -max(1, -(-len(data) // points))][::-1]


def smoothed(data):
    """Average over about the last 3 % of the logging points, and over 5 at least."""
    return data.ewm(span=max(5, 0.03 * len(data))).mean()


def trace(values: pd.Series, name: str, kind: str, line: dict, **style) -> dict:
    """Make a Plotly line, with row numbers of the CSV for x: the page looks up the chosen axis."""
    y = [None if np.isnan(value) else float(f"{value:.5g}") for value in values]
    mode = "lines+markers" if len(values) < 30 and line["width"] else "lines"
    marker = {"size": 2 + 1.5 * line["width"]}
    main = {
        "name": name.replace("_", " "),
        "kind": kind,
        "rows": values.index.tolist(),
        "y": y,
        "mode": mode,
    }
    return main | {"line": line, "marker": marker} | style


def curve(values: pd.Series, name: str, color: str) -> list[dict]:
    """Draw one metric twice, raw (thin and pale) and smoothed (bold), toggled as one."""
    values = values.dropna()
    raw, bold = {"width": 1, "color": color}, {"width": 2.5, "color": color}
    return [
        trace(extremes(values), f"{name} (raw)", "raw", raw, opacity=0.35, legendgroup=name),
        trace(evenly(smoothed(values)), name, "smoothed", bold, legendgroup=name),
    ]


def focus(data: pd.DataFrame) -> dict:
    """Return a y axis without rare outliers, which would flatten the rest, or one for all."""
    values = data.to_numpy().ravel()
    values = values[~np.isnan(values)]
    if len(values) < 50:
        return {}
    # The newest rows always count: a run that blows up has to be seen.
    recent = data.tail(len(data) // 20 + 1)
    low = np.nanmin([np.quantile(values, 0.05), recent.min().min()])
    high = np.nanmax([np.quantile(values, 0.95), recent.max().max()])
    margin = 0.25 * (high - low)
    clipped = high > low and np.ptp(values) > 3 * (high - low)
    return {"range": [float(low - margin), float(high + margin)]} if clipped else {}


def panel(frame: pd.DataFrame, title: str, metrics: dict[str, str]) -> dict:
    """Draw metrics (name -> column) of one scale in one panel, headed by its newest value."""
    data, traces = frame[list(metrics.values())], []
    for number, (name, column) in enumerate(metrics.items()):
        color = RESULTS.get(name, COLORS[number % len(COLORS)])
        traces += curve(frame[column], name, color)
    # The newest values of several metrics would not fit beside the title.
    known = data.dropna().to_numpy()
    note = f"{known[-1, 0]:.4g}" if len(metrics) == 1 and len(known) else ""
    yaxis = focus(data)
    return {"title": title, "note": note, "columns": metrics, "traces": traces, "yaxis": yaxis}


def stacked_panel(frame: pd.DataFrame, title: str, metrics: dict[str, str]) -> dict:
    """Stack shares (0 to 1) that add up to one."""
    shares = frame[list(metrics.values())].dropna(how="all").fillna(0)
    shares, traces = evenly(smoothed(shares)), []
    for number, (name, column) in enumerate(metrics.items()):
        style = {"stackgroup": "all", "fillcolor": COLORS[number % len(COLORS)]}
        traces.append(trace(shares[column], name, "fixed", {"width": 0}, **style))
    yaxis = {"range": [0, 1]}
    return {"title": title, "note": "", "columns": metrics, "traces": traces, "yaxis": yaxis}


def band(low: pd.Series, high: pd.Series, kind: str, color: str, group: str) -> list[dict]:
    """Fill the space between two curves, toggled with the lines of its group."""
    style = {"legendgroup": group, "showlegend": False, "hoverinfo": "skip", "mode": "lines"}
    fill = style | {"fill": "tonexty", "fillcolor": color + "33"}
    bottom = trace(low, "low", kind, {"width": 0}, **style)
    return [bottom, trace(high, "high", kind, {"width": 0}, **fill)]


def evaluation_panel(frame: pd.DataFrame, opponent: str, metrics: dict[str, str]) -> dict:
    """Draw the shares (0 to 1) of wins, draws and losses, and how sure those of the wins are."""
    played = evenly(frame[list(metrics.values())].dropna(), 1000)
    traces, note = [], ""
    for name in (name for name in RESULTS if name in metrics):
        line = {"width": 3 if name == "wins" else 1.5, "color": RESULTS[name]}
        traces.append(trace(played[metrics[name]], name, "fixed", line, legendgroup=name))
    if {"wins", "games"} <= set(metrics) and len(played):
        games = played[metrics["games"]]
        low, high = wilson_interval(played[metrics["wins"]], games)
        traces = band(low, high, "fixed", RESULTS["wins"], "wins") + traces
        note = f"{played[metrics['wins']].iloc[-1]:.0%} wins"
        note += f" ({low.iloc[-1]:.0%} to {high.iloc[-1]:.0%}, {games.iloc[-1]:.0f} games)"
    yaxis = {"range": [-0.02, 1.02], "tickformat": ".0%"}
    title = f"against {opponent}"
    return {"title": title, "note": note, "columns": metrics, "traces": traces, "yaxis": yaxis}


def evaluation_panels(frame: pd.DataFrame, metrics: dict[str, str]) -> list[dict]:
    """Give each opponent one wide panel, and what else was evaluated a small one."""
    opponents, panels = {}, []
    for name, column in metrics.items():
        opponent, _, value = name.rpartition("/")
        if opponent and value in [*RESULTS, "games"]:
            opponents.setdefault(opponent, {})[value] = column
        else:
            panels.append(panel(frame, name, {name: column}))
    wide = [evaluation_panel(frame, *opponent) | {"wide": True} for opponent in opponents.items()]
    return wide + panels


def group_panels(frame: pd.DataFrame, group: str, metrics: dict[str, str]) -> list[dict]:
    """Give each metric of a group its own panel, but for those which are compared."""
    if group == "evaluation":
        return evaluation_panels(frame, metrics)
    if group == "opponents":
        return [stacked_panel(frame, "share of games", metrics)]
    if group == "time":
        return [panel(frame, "where the time goes", metrics)]
    titles = {name: title for title, names in SHARED.get(group, {}).items() for name in names}
    panels = {}
    for name, column in metrics.items():
        panels.setdefault(titles.get(name, name), {})[name] = column
    return [panel(frame, title, shared) for title, shared in panels.items()]


def sections(frame: pd.DataFrame) -> dict[str, list[dict]]:
    """Sort the metrics `group/name` into panels by group, what matters most first."""
    groups = {group: {} for group in ("evaluation", "train", "world_model", "behavior")}
    for column in frame.columns.drop(list(AXES)):
        group, _, name = column.partition("/")
        groups.setdefault(group if name else "other", {})[name or column] = column
    return {group: group_panels(frame, group, names) for group, names in groups.items() if names}


def summary(frame: pd.DataFrame, evaluations: list[dict]) -> str:
    """Say in a line how far the run is (steps, minutes) and how often it wins."""
    if frame.empty:
        return "There is nothing yet: the run has not logged any numbers."
    last = frame.iloc[-1]
    parts = [f"<b>{last[axis]:,.0f}</b> {label}" for axis, label in AXES.items()]
    for shown in evaluations:
        if shown.get("wide") and shown["note"]:
            parts.append(f"{html.escape(shown['title'])} <b>{shown['note'].split(' (')[0]}</b>")
    return " · ".join(parts)


def markup(groups: dict[str, list[dict]]) -> str:
    """Lay out headings and places of all panels; the curves themselves come later."""
    lines = []
    for group, panels in groups.items():
        lines.append(f"<h2>{html.escape(group.replace('_', ' '))}</h2><div class='grid'>")
        for shown in panels:
            columns = html.escape(", ".join(shown["columns"].values()), quote=True)
            title = html.escape(shown["title"].replace("_", " "))
            lines.append(
                f'<figure class="{"wide" if shown.get("wide") else ""}" title="{columns}">'
                f"<figcaption>{title} <span>{shown['note']}</span></figcaption>"
                f'<div class="chart"></div></figure>'
            )
        lines.append("</div>")
    return "\n".join(lines)


def packed(text: str) -> str:
    """Compress a text for a page: Plotly alone is 4.8 MB, and pages are opened on phones."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


@functools.cache
def packed_plotly() -> str:
    """Compress the Plotly library that comes with its Python package, once per process."""
    return packed(get_plotlyjs())


def write_page(csv_path, html_path) -> None:
    """Write the page of a run's CSV file in one step, so that no reader meets half a page."""
    frame = read_metrics(csv_path)
    groups = sections(frame)
    panels = [shown for panels in groups.values() for shown in panels]
    fill_template(
        html_path,
        data_of(frame, AXES, panels),
        title=html.escape(Path(csv_path).stem),
        summary=summary(frame, groups.get("evaluation", [])),
        radios=radios(AXES),
        boxes=boxes("raw", "smoothed"),
        panels=markup(groups),
    )


def data_of(frame: pd.DataFrame, axes: dict[str, str], panels: list[dict]) -> dict:
    """Collect what the page draws: the columns chosen as x axes, their labels, the panels."""
    x = frame[list(axes)].round(3).astype(object)
    return {"axes": x.where(x.notna(), None).to_dict("list"), "labels": axes, "panels": panels}


def radios(axes: dict[str, str]) -> str:
    """Lay out the choice of the x axis."""
    button = '<label><input type="radio" name="x" value="{}">{}</label>'
    return "".join(button.format(*axis) for axis in axes.items())


def boxes(pale: str, bold: str, hidden: str = "") -> str:
    """Lay out what switches the pale and the bold lines on and off."""
    box = '<label {}><input type="checkbox" id="{}" checked>{}</label>'
    return box.format(hidden, "raw", pale) + box.format(hidden, "smoothed", bold)


def fill_template(html_path, data: dict, template: str = "page.html", **parts: str) -> None:
    """Write a page of `parts` (HTML each) and of the data it draws, in one step."""
    text = (Path(__file__).parent / template).read_text(encoding="utf-8")
    page = Template(text).substitute(
        parts,
        time=time.strftime("%Y-%m-%d %H:%M"),
        data=packed(json.dumps(data, separators=(",", ":"))),
        plotly=packed_plotly(),
    )
    write_atomically(html_path, lambda file: file.write_text(page, encoding="utf-8"))


# ---------------------------------------------------------------------------- several runs

# 97.5% quantiles of Student's t distribution for 2, 3, ... seeds; the last one also for more.
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def read_evaluations(csv_path) -> pd.DataFrame:
    """Read the rows with evaluations: axes, evaluation/<opponent>/wins and .../games.

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
    frame = frame[[*AXES, *wins, *games]].dropna(subset=wins, how="all").reset_index(drop=True)
    frame[wins] = frame[wins].round(6)  # logged with 7 digits: 90% must not read 89.99999%
    return frame


def opponents(frame: pd.DataFrame) -> list[str]:
    """Name the opponents of whom wins and numbers of games are known."""
    named = [re.fullmatch("evaluation/(.+)/wins", column) for column in frame.columns]
    return [name[1] for name in named if name and f"evaluation/{name[1]}/games" in frame]


def read_runs(csv_paths) -> list[tuple]:
    """Read the evaluations of several runs -> (label, seed, frame) of each.

    <label>_seed<n>.csv holds seed n; any other name is a label without a seed. Files of equal
    names are told apart by their folders. Raises `UserError` as `read_evaluations` does.
    """
    names = [Path(path).with_suffix("") for path in dict.fromkeys(csv_paths)]
    if len({name.name for name in names}) == len(names):
        names = [name.name for name in names]
    runs = []
    for path, name in zip(dict.fromkeys(csv_paths), map(str, names), strict=True):
        seeded = re.fullmatch(r"(.+?)[_-]seed[_-]?(\d+)", name)
        label, seed = (seeded[1], int(seeded[2])) if seeded else (name, None)
        runs.append((label, seed, read_evaluations(path)))
    return runs


def run_name(label: str, seed) -> str:
    """Name a run as a legend does."""
    return label if seed is None else f"{label}, seed {seed}"


def wins_of(runs) -> pd.DataFrame:
    """Give each evaluation of each run a row: axes, wins (0 to 1), games, low, high, whose it is.

    low and high are the 95% Wilson interval; the kind of line is "raw" beside other seeds.
    """
    parts, labels = [], [label for label, _, _ in runs]
    for label, seed, frame in runs:
        kind = "raw" if labels.count(label) > 1 else "fixed"
        for opponent in opponents(frame):
            columns = {f"evaluation/{opponent}/{value}": value for value in ("wins", "games")}
            part = frame[[*AXES, *columns]].dropna().rename(columns=columns)
            low, high = wilson_interval(part["wins"], part["games"])
            whose = {"opponent": opponent, "label": label, "name": run_name(label, seed)}
            parts.append(part.assign(low=low, high=high, kind=kind, **whose))
    return pd.concat(parts)


def mean_over_seeds(points: pd.DataFrame) -> pd.DataFrame:
    """Average the wins of runs that differ by seed, at equal gradient steps that all have reached.

    The interval is Student's over the seeds, at 95%, and never narrower than that of all games.
    """
    frames = [frame for _, frame in points.groupby("name", sort=False)]
    starts, ends = zip(*(frame["gradient_steps"].iloc[[0, -1]] for frame in frames), strict=True)
    steps = np.unique(points["gradient_steps"])
    steps = steps[(steps >= max(starts)) & (steps <= min(ends))]
    columns = [*AXES, "wins", "games"]
    values = np.stack(
        [[np.interp(steps, frame["gradient_steps"], frame[c]) for c in columns] for frame in frames]
    )  # (seeds, columns, steps)
    mean = pd.DataFrame(values.mean(0).T, columns=columns)
    mean["games"] *= len(frames)
    spread = values[:, columns.index("wins")].std(0, ddof=1) / len(frames) ** 0.5
    margin = STUDENT[min(len(frames) - 2, len(STUDENT) - 1)] * spread
    low, high = wilson_interval(mean["wins"], mean["games"])
    mean["low"] = np.minimum(low, mean["wins"] - margin).clip(0)
    mean["high"] = np.maximum(high, mean["wins"] + margin).clip(upper=1)
    whose = {key: points[key].iloc[0] for key in ("opponent", "label")}
    name = f"{whose['label']}, mean of {len(frames)} seeds"
    return mean.assign(name=name, kind="smoothed", **whose)


def wins_line(points: pd.DataFrame, color: str) -> list[dict]:
    """Draw one run (or mean) against one opponent: bold with a band, or pale with error bars."""
    wins, low, high = points["wins"], points["low"], points["high"]
    label, name, kind = points[["label", "name", "kind"]].iloc[0]
    hover = [
        f"{row.wins:.1%} ({row.low:.1%} to {row.high:.1%}, {row.games:.0f} games)"
        for row in points.itertuples()
    ]
    style = {"legendgroup": label, "text": hover, "hovertemplate": "%{text}"}
    if kind != "raw":
        line = trace(wins, "", kind, {"width": 2.5, "color": color}, **style)
        return [*band(low, high, kind, color, label), line | {"name": name}]
    sides = {"array": (high - wins).tolist(), "arrayminus": (wins - low).tolist()}
    bars = {"error_y": sides | {"type": "data", "symmetric": False, "thickness": 1, "width": 2}}
    line = trace(wins, "", kind, {"width": 1, "color": color}, opacity=0.5, **bars, **style)
    return [line | {"name": name}]


def comparison_panels(table: pd.DataFrame) -> list[dict]:
    """Draw one panel per opponent with all runs; those that differ by seed share a colour."""
    colors = {label: COLORS[n % len(COLORS)] for n, label in enumerate(table["label"].unique())}
    panels = []
    for opponent, points in table.groupby("opponent", sort=False):
        traces = []
        for label, color in colors.items():
            for _, line in points[points["label"] == label].groupby("name", sort=False):
                traces += wins_line(line, color)
        ticks = [0, 0.25, 0.5, 0.8, 0.9, 1]
        yaxis = {"range": [-0.02, 1.02], "tickformat": ".0%", "tickvals": ticks}
        columns = {name: f"evaluation/{opponent}/wins" for name in points["name"].unique()}
        shown = {"title": f"wins against {opponent}", "note": "", "columns": columns, "wide": True}
        panels.append(shown | {"traces": traces, "yaxis": yaxis})
    return panels


def write_comparison_page(runs, html_path, title="comparison", table=()) -> None:
    """Write a page of the wins of several runs (label, seed, frame of `read_runs`) side by side.

    Runs of one label are seeds of one experiment: their mean is drawn too, as its last line.
    `table` (rows of texts, the first one is the head) stands below the curves.
    """
    axes = {name: AXES[name] for name in ("minutes", "gradient_steps", "environment_steps")}
    points = wins_of(runs)
    fewest, most = points["games"].min(), points["games"].max()
    text = f"<b>{fewest:.0f}</b> " + (f"to <b>{most:.0f}</b> " if most > fewest else "")
    text += "games per point; bands and bars are 95% Wilson intervals."
    groups = points.groupby(["opponent", "label"], sort=False)
    means = [mean_over_seeds(group) for _, group in groups if group["name"].nunique() > 1]
    if means:
        text += " A mean's band is the 95% t-interval over its seeds: wide if they are few."
    points = pd.concat([points, *means], ignore_index=True)
    panels = comparison_panels(points)
    fill_template(
        html_path,
        data_of(points, axes, panels),
        title=html.escape(title),
        summary=text,
        radios=radios(axes),
        boxes=boxes("each seed", "mean over seeds", "" if means else "hidden"),
        panels=markup({"evaluation": panels}) + table_markup(table),
    )


def table_markup(rows) -> str:
    """Lay out rows of texts as a table; the first row is its head."""
    lines = []
    for number, row in enumerate(rows):
        cells = (html.escape(text).replace("\n", "<br>") for text in row)
        kind = "td" if number else "th"
        lines.append("<tr>" + "".join(f"<{kind}>{cell}</{kind}>" for cell in cells) + "</tr>")
    return f"<figure class='table'><table>{''.join(lines)}</table></figure>" if rows else ""


# ---------------------------------------------------------------------------- the league


def matrix_panel(league) -> dict:
    """Draw the win rates (0 to 1) of a `League` as a heat map, row against column."""
    heat = {"type": "heatmap", "kind": "fixed", "rows": [], "x": [], "y": []}
    heat |= {"z": [], "text": [], "hovertext": []}
    for number, name in enumerate(league.names, 1):
        heat["x"].append(str(number))
        short = name if len(name) <= 16 else "…" + name[-15:]
        heat["y"].append(html.escape(f"{number} {short} "))
        results = [None if one == name else league.result(name, one) for one in league.names]
        cells = zip(*(matrix_cell(name, result) for result in results), strict=True)
        for key, row in zip(("z", "text", "hovertext"), cells, strict=True):
            heat[key].append(row)
    heat |= {"texttemplate": "%{text}", "textfont": {"size": 11}, "xgap": 2, "ygap": 2}
    heat |= {"hovertemplate": "%{hovertext}<extra></extra>", "showscale": False}
    heat |= {"colorscale": [[0, "#eef3f9"], [1, RESULTS["wins"]]], "zmin": 0, "zmax": 1}
    axis = {"type": "category", "showgrid": False, "ticks": "", "fixedrange": True}
    layout = {"hovermode": "closest", "margin": {"l": 10, "r": 4, "t": 24, "b": 10}}
    layout |= {"xaxis": axis | {"side": "top"}}
    layout |= {"yaxis": axis | {"autorange": "reversed", "automargin": True}}
    return {"columns": {}, "traces": [heat], "layout": layout}


def matrix_cell(name: str, result) -> tuple:
    """Return a win rate, its text in the cell, and what pointing at the cell says."""
    if result is None:
        return None, "", ""
    rate, (low, high) = result.win_rate(), result.interval()
    text = f"{rate:.0%}<br>{100 * low:.0f}–{100 * high:.0f}"
    hover = html.escape(f"{name} against {result.opponent}") + f"<br>{result.share()} won:<br>"
    return rate, text, hover + "{} won, {} drawn, {} lost".format(*result.counts())


def write_league(league, html_path, summary: str) -> None:
    """Write the page of a `League`: its matrix, and ratings and worst cases as a table."""
    rows = [("player", "rating", "worst case", "hard counters")]
    for number, name in enumerate(league.names, 1):
        rating, worst = "-", league.worst_case(name)
        if league.ratings:
            mu, sigma = league.ratings[name]
            rating = f"{league.rating(name):.1f}\n{mu:.1f} − 3\u00a0×\u00a0{sigma:.1f}"
        case = f"{worst.opponent}\n{worst.share()}".replace(", ", ",\u00a0")
        counters = "\n".join(league.hard_counters(name)) or "none"
        rows.append((f"{number}\u00a0{name}", rating, case, counters))
    # A line may end after a slash or an underscore: names are long and phones are narrow.
    rows = [[re.sub("(?<=[/_])", "\u200b", text) for text in row] for row in rows]
    size = f"height: {40 + 44 * len(league.names)}px; min-width: {140 + 36 * len(league.names)}px"
    matrix = f"""<figure class="table"><figcaption>games won, row against column</figcaption>
<div class="chart" style="{size}"></div></figure>"""
    fill_template(
        html_path,
        {"axes": {}, "labels": {}, "panels": [matrix_panel(league)]},
        title="league",
        summary=html.escape(summary),
        radios="",
        boxes="",
        panels=f'<div class="league">{matrix}{table_markup(rows)}</div>',
    )
