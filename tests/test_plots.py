"""Tests of the pages of curves: complete, offline, small, honest about intervals, never torn."""

import base64
import gzip
import json
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_config

from evaluate import main
from extras.plots import (
    AXES,
    COLORS,
    commit,
    compared,
    documented,
    extremes,
    final_table,
    focus,
    read_runs,
    write_comparison_page,
    write_page,
)
from matches import wilson_interval
from utils import UserError

ROOT = Path(__file__).parent.parent
METRICS = (
    "world_model/loss world_model/kl_dynamics world_model/free_nats behavior/std train/wins "
    "evaluation/weak/wins evaluation/weak/draws evaluation/weak/losses evaluation/weak/games "
    "evaluation/<new>/wins evaluation/seconds opponents/weak opponents/self time/train "
    "speed/memory_gb unknown/thing lonely"
).split()


def log(rows):
    """A made-up log of shares (0 to 1), of which evaluations are rare."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame({axis: np.arange(rows) * 0.5 for axis in AXES})
    frame[METRICS] = random.uniform(size=(rows, len(METRICS)))
    rare = [metric for metric in METRICS if metric.startswith("evaluation/")]
    frame.loc[frame.index % 50 != 49, rare] = np.nan
    return frame


def read_page(path):
    """A page and the data packed into it."""
    page = path.read_text(encoding="utf-8")
    packed = re.search(r'id="data">([^<]*)<', page)[1]

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return page, json.loads(gzip.decompress(base64.b64decode(packed)), parse_constant=refuse)


def page_of(frame, folder):
    """The page of a run with this log, and the data packed into it."""
    frame.to_csv(folder / "my run.csv", index=False)
    write_page(folder / "my run.csv", folder / "plots" / "my run.html")
    return read_page(folder / "plots" / "my run.html")


def lines_of(data):
    """The name of a line -> the line, of all panels."""
    panels = [panel for group in data["groups"].values() for panel in group]
    return {line["name"]: line for panel in panels for line in panel["traces"]}


def test_page_is_complete_offline_and_small(tmp_path):
    page, data = page_of(log(3000), tmp_path)
    assert "<title>my run</title>" in page
    assert not re.search(r"https?://|\ssrc=|<link|@import", page)
    assert not re.search(r"\$[a-z]", page)  # nothing left to fill in
    assert len(page) < 5e6
    panels = [panel for group in data["groups"].values() for panel in group]
    assert sorted(column for panel in panels for column in panel["columns"]) == sorted(METRICS)
    assert list(data["axes"]) == list(AXES) and len(data["axes"]["minutes"]) == 3000
    assert list(data["lines"]) == ["raw", "smoothed"]
    assert max(len(line["y"]) for line in lines_of(data).values()) <= 1000
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["my run.html"]


def test_what_belongs_together_is_drawn_together(tmp_path):
    data = page_of(log(120), tmp_path)[1]
    titles = {name: [panel["title"] for panel in group] for name, group in data["groups"].items()}
    assert list(titles)[:4] == ["evaluation", "train", "world model", "behavior"]
    assert titles["evaluation"] == ["against weak", "<new>/wins", "seconds"]
    assert titles["world model"] == ["loss", "KL"] and titles["other"] == ["lonely"]
    assert titles["opponents"] == ["share of games"]


def test_the_page_tells_what_made_it_and_what_its_columns_mean(tmp_path):
    log(20).to_csv(tmp_path / "run.csv", index=False)
    config = make_config("pendulum.yml", run="other", seed=7, dreamer__horizon=9)
    write_page(tmp_path / "run.csv", tmp_path / "run.html", config)
    page, data = read_page(tmp_path / "run.html")
    (origin,) = re.findall("<small>(run other.*?)</small>", page)
    assert "seed 7; hockey.yml with" in origin and "dreamer.horizon=9," in origin
    assert "environment=Pendulum-v1" in origin and "dreamer.gamma" not in origin
    assert f"by the code of commit {commit()}" in page
    help = {panel["title"]: panel["help"] for group in data["groups"].values() for panel in group}
    unit, text, healthy = documented()["world_model/free_nats"]
    assert f"world_model/free_nats [{unit}]: {text}" in help["KL"] and healthy == ""
    assert "healthy: " in help["std"] and help["lonely"] == "lonely"


def test_every_column_of_real_runs_is_documented_once():
    columns = list(pd.read_csv(ROOT / "metrics" / "champion.csv").columns)
    columns += ["evaluation/return", "behavior/sureness", "behavior/imitation_error"]
    columns += ["evaluation/<new>/wins"]
    for column in columns:
        assert len([name for name in documented() if re.fullmatch(name, column)]) == 1, column
    for name in documented():
        assert any(re.fullmatch(name, column) for column in columns), name


def test_an_evaluation_shows_its_interval(tmp_path):
    frame = log(120)
    frame["evaluation/weak/games"] *= 100
    page, data = page_of(frame, tmp_path)
    panel = data["groups"]["evaluation"][0]
    wins, games = frame.iloc[99][["evaluation/weak/wins", "evaluation/weak/games"]]
    low, high = wilson_interval(wins, games)
    assert panel["note"] == f"wins {wins:.1%} ({low:.1%} to {high:.1%}, {games:.0f} games)"
    assert f"against weak <b>wins {wins:.1%}</b>" in page
    lower, upper, line = panel["traces"][:3]
    assert line["name"] == "wins" and line["rows"] == lower["rows"] == [49, 99]
    ends = [lower["y"][1], line["y"][1], upper["y"][1]]
    assert ends == pytest.approx([low, wins, high], abs=1e-4)


def test_page_replaces_the_old_one(tmp_path):
    page_of(log(10), tmp_path)
    _, data = page_of(log(60), tmp_path)
    assert len(data["axes"]["minutes"]) == 60


@pytest.mark.parametrize("text", ["", "\n", ",".join([*AXES, *METRICS]) + "\n"])
def test_empty_file_says_so(tmp_path, text):
    (tmp_path / "run.csv").write_text(text)
    write_page(tmp_path / "run.csv", tmp_path / "run.html")
    assert "nothing yet" in (tmp_path / "run.html").read_text()


def test_holes_and_infinities_leave_the_rest_standing(tmp_path):
    frame = log(120)
    frame.loc[5:20, "behavior/std"] = np.nan
    frame.loc[7, "world_model/loss"] = np.inf
    frame["lonely"] = np.nan
    lines = lines_of(page_of(frame, tmp_path)[1])
    assert len(lines["std (raw)"]["y"]) == 104 and len(lines["loss (raw)"]["y"]) == 119
    assert lines["lonely (raw)"]["y"] == [] and lines["draws"]["rows"] == [49, 99]


def test_last_row_may_be_half_written(tmp_path):
    text = log(3).to_csv(index=False)
    (tmp_path / "run.csv").write_text(text[:-200])
    write_page(tmp_path / "run.csv", tmp_path / "run.html")


def test_thinning_keeps_spikes():
    values = pd.Series(np.zeros(100_001))
    values[70_007] = 9.0
    thin = extremes(values)
    assert len(thin) <= 1000 and thin[70_007] == 9.0
    assert extremes(values[:400]).equals(values[:400])


def test_focus_hides_old_outliers_but_not_a_fresh_blow_up():
    data = pd.DataFrame({"loss": np.r_[1e6, np.linspace(1, 2, 999)]})
    assert focus(data)["range"][1] < 3
    assert focus(data[::-1]) == {}


# ---------------------------------------------------------------------------- several runs


def write_run(path, wins, games=200, steps=(1000, 2000, 3000)):
    """Writes the CSV of a run with these wins against the weak bot."""
    frame = pd.DataFrame({"gradient_steps": steps, "environment_steps": steps, "minutes": steps})
    frame["evaluation/weak/wins"], frame["evaluation/weak/games"] = wins, games
    path.parent.mkdir(exist_ok=True)
    frame.to_csv(path, index=False)
    return path


def compare(paths, folder, *more):
    """The page of several runs, the data packed into it, and its only panel's lines."""
    write_comparison_page(compared(read_runs(paths)), folder / "all.html", *more)
    page, data = read_page(folder / "all.html")
    (panel,) = data["groups"]["evaluation"]
    return page, data, panel["traces"]


@pytest.fixture
def seeds(tmp_path):
    """Three runs that differ by seed."""
    wins = enumerate((0.8, 0.9, 1.0))
    return [write_run(tmp_path / f"a_seed{seed}.csv", [0.1, 0.5, last]) for seed, last in wins]


def test_seeds_are_drawn_with_their_mean(seeds, tmp_path):
    other, table = write_run(tmp_path / "b.csv", [0, 0.25, 1], games=100), [["<run>"], ["a\nb"]]
    page, data, lines = compare([*seeds, other], tmp_path, "Skill", table)
    assert "<title>Skill</title>" in page and "&lt;run&gt;" in page and "<td>a\nb</td>" in page
    assert "<b>100</b> to <b>200</b> games" in page
    assert list(data["axes"])[0] == "minutes" and data["lines"]["raw"] == "each seed"
    kinds = {line["name"]: line["kind"] for line in lines if line["name"]}
    each = dict.fromkeys(("a, seed 0", "a, seed 1", "a, seed 2"), "raw")
    assert kinds == each | {"b": "fixed", "a, mean of 3 seeds": "smoothed"}
    color = {line["name"]: line["line"]["color"] for line in lines}
    assert color["a, seed 0"] == color["a, mean of 3 seeds"] != color["b"]


def test_a_means_interval_is_students_but_never_narrower_than_the_games(seeds, tmp_path):
    lower, upper, mean = compare(seeds, tmp_path)[2][-3:]
    assert mean["y"] == pytest.approx([0.1, 0.5, 0.9])
    assert lower["y"][2] == pytest.approx(0.9 - 4.30 * 0.1 / 3**0.5, abs=1e-4)  # +-10% over 3 seeds
    assert upper["y"][2] == 1
    for row, wins in ((0, 0.1), (1, 0.5)):  # where all seeds agree
        ends = lower["y"][row], upper["y"][row]
        assert ends == pytest.approx(wilson_interval(wins, 600), abs=1e-4)


def test_a_mean_ends_where_the_first_of_its_runs_does(tmp_path):
    paths = [write_run(tmp_path / "a_seed0.csv", [0.2, 0.4, 0.6])]
    paths.append(write_run(tmp_path / "a_seed1.csv", [0.2, 0.2], steps=(1500, 2500)))
    _, data, lines = compare(paths, tmp_path)
    steps = [data["axes"]["gradient_steps"][row] for row in lines[-1]["rows"]]
    assert steps == [1500, 2000, 2500] and lines[-1]["y"] == pytest.approx([0.25, 0.3, 0.35])


def lab(color):
    """A colour #rrggbb as CIELAB, of what a red-blind and a green-blind eye see, and as it is."""
    share = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    eyes = [  # Machado, Oliveira, Fernandes 2009
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.0039, -0.0481, 1.052],
        ],
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.0118, 0.0429, 0.9689],
        ],
        np.eye(3),
    ]
    white = np.array([0.9505, 1, 1.089])
    xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt((np.array(xyz) @ np.clip(eyes @ linear, 0.001, 1).T) / white[:, None])
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)  # (3 eyes, 3)


def test_lines_are_told_apart_by_every_eye_and_without_colour(tmp_path):
    for one, other in combinations(COLORS, 2):
        assert (np.linalg.norm(lab(one) - lab(other), axis=-1) > 15).all(), (one, other)
    assert np.linalg.norm(lab("#2f7ed8") - lab("#a05fc0"), axis=-1)[0] < 10  # a pair of before
    paths = [write_run(tmp_path / f"{name}.csv", 0.5) for name in "abcdefghij"]
    lines = [line for line in compare(paths, tmp_path)[2] if line["name"]]
    looks = [(line["line"]["color"], line["line"]["dash"]) for line in lines]
    assert len(set(looks)) == 10 and len({line["marker"]["symbol"] for line in lines[:5]}) == 5
    assert len({dash for _, dash in looks[:4]}) == 4


def test_only_who_is_the_same_in_all_runs_is_compared(tmp_path):
    paths = [write_run(tmp_path / f"{name}.csv", 0.5) for name in "ab"]
    for path, names in zip(paths, (("strong", "oldest"), ("oldest", "newest")), strict=True):
        frame = pd.read_csv(path)
        for name in names:
            frame[f"evaluation/{name}/wins"], frame[f"evaluation/{name}/games"] = 0.5, 40
        frame.to_csv(path, index=False)
    points = compared(read_runs(paths))
    assert list(points["column"].unique()) == ["evaluation/weak/wins"]
    frame.drop(columns="evaluation/weak/wins").assign(**{"evaluation/return": 1}).to_csv(
        paths[0], index=False
    )
    with pytest.raises(UserError, match="no common opponent"):
        compared(read_runs(paths))


def test_returns_have_a_t_interval_over_seeds_and_a_table(tmp_path):
    for seed, last in enumerate((100, 200, 300)):
        frame = pd.DataFrame(dict.fromkeys(AXES, [1, 2]))
        frame["evaluation/return"] = [0, last]
        frame.to_csv(tmp_path / f"a_seed{seed}.csv", index=False)
    frame.to_csv(tmp_path / "b.csv", index=False)
    paths = [tmp_path / f"{name}.csv" for name in ("a_seed0", "a_seed1", "a_seed2", "b")]
    page, _, lines = compare(paths, tmp_path)
    margin = 4.30 * 100 / 3**0.5
    ends = [f"{200 + sign * margin:.4g}" for sign in (-1, 1)]
    assert (
        f"200 ({' to '.join(ends)})" in lines[-1]["text"] and "games" not in page.split("<h1>")[0]
    )
    half = [f"{100 + sign * margin / 2:.4g}" for sign in (-1, 1)]
    assert final_table(compared(read_runs(paths))) == [
        ["", "seeds", "return", "mean of the whole run", "gradient steps", "minutes"],
        ["a", "3", f"200 ({' to '.join(ends)})", f"100 ({' to '.join(half)})", "2", "2.0"],
        ["b", "1", "300", "150", "2", "2.0"],
    ]


def test_a_comparison_is_a_figure_for_a_report_too(seeds, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    command = ["--compare", *map(str, seeds), "--page", str(tmp_path / "page.html"), "--out"]
    assert main([*command, str(tmp_path / "new" / "wins.svg")]) == 0
    figure = (tmp_path / "new" / "wins.svg").read_text()
    assert "<svg" in figure and figure.count(COLORS[0]) >= 4 and "mean of 3 seeds" in figure
    assert main([*command, str(tmp_path / "wins.xyz")]) == 2
    error = capsys.readouterr().err
    assert "wins.xyz" in error and error.count("\n") == 1 and not list(tmp_path.glob("*wins*"))


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    paths = [write_run(tmp_path / folder / "a_seed1.csv", 0.5) for folder in "xy"]
    labels = [f"{tmp_path}/{folder}/a" for folder in "xy"]
    assert [run[:2] for run in read_runs([*paths, paths[0]])] == [(label, 1) for label in labels]


def test_90_percent_are_not_a_little_less(tmp_path):
    logged = float(np.float32(0.9)) - 1e-7
    ((_, _, evaluations),) = read_runs([write_run(tmp_path / "a.csv", logged)])
    assert (evaluations["evaluation/weak/wins"] >= 0.9).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "There is no file"),
        ("gradient_steps,environment_steps,minutes\n1,2,3\n", "holds no evaluations"),
        ('a,b\n"', "can't be read as a CSV"),
        ("", "holds no evaluations"),
    ],
)
def test_a_file_without_evaluations_is_answered_in_one_sentence(text, message, tmp_path):
    if text is not None:
        (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_runs([tmp_path / "a.csv"])
    assert "\n" not in str(error.value)


def test_the_command_line_compares(seeds, tmp_path, capsys):
    page = tmp_path / "new" / "page.html"
    assert main(["--compare", *map(str, seeds), "--page", str(page)]) == 0
    assert str(page) in capsys.readouterr().out and page.exists()
    assert main(["--compare", "none.csv"]) == 2
    assert capsys.readouterr().err == "evaluate.py: There is no file none.csv.\n"
