"""Draw one offline HTML page of interactive curves from the CSV file that a run logs.

Every metric in the file is shown, also those of groups unknown here. Measuring, averaging and
logging the numbers, and deciding when to draw them again, are left to others.
"""

import base64
import functools
import gzip
import html
import json
import time
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd
from plotly.offline import get_plotlyjs

from utils import wilson_interval, write_atomically

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
        band = {"legendgroup": "wins", "showlegend": False, "hoverinfo": "skip"}
        fill = band | {"fill": "tonexty", "fillcolor": RESULTS["wins"] + "33"}
        bottom = trace(low, "low", "fixed", {"width": 0}, **band)
        traces = [bottom, trace(high, "high", "fixed", {"width": 0}, **fill), *traces]
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
    x = frame[list(AXES)].round(3).astype(object)
    data = {
        "axes": x.where(x.notna(), None).to_dict("list"),
        "labels": AXES,
        "panels": [shown for panels in groups.values() for shown in panels],
    }
    radios = (f'<label><input type="radio" name="x" value="{a}">{AXES[a]}</label>' for a in AXES)
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    page = Template(template).substitute(
        title=html.escape(Path(csv_path).stem),
        summary=summary(frame, groups.get("evaluation", [])),
        time=time.strftime("%Y-%m-%d %H:%M"),
        radios="".join(radios),
        panels=markup(groups),
        data=packed(json.dumps(data, separators=(",", ":"))),
        plotly=packed_plotly(),
    )
    write_atomically(html_path, lambda file: file.write_text(page, encoding="utf-8"))
