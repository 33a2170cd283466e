"""Tests of the page of curves: complete, offline, small, and never half-written."""

import base64
import gzip
import json
import re

import numpy as np
import pandas as pd
import pytest

from plots import AXES, extremes, focus, write_page
from utils import wilson_interval

METRICS = (
    "world_model/loss world_model/kl_dynamics world_model/free_nats behavior/std train/wins "
    "evaluation/weak/wins evaluation/weak/draws evaluation/weak/losses evaluation/weak/games "
    "evaluation/<new>/wins evaluation/seconds opponents/weak opponents/self time/train "
    "speed/memory_gb unknown/thing lonely"
).split()


def log(rows: int) -> pd.DataFrame:
    """Make up a log of shares (0 to 1), of which evaluations are rare."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame({axis: np.arange(rows) * 0.5 for axis in AXES})
    frame[METRICS] = random.uniform(size=(rows, len(METRICS)))
    rare = [metric for metric in METRICS if metric.startswith("evaluation/")]
    frame.loc[frame.index % 50 != 49, rare] = np.nan
    return frame


def page_of(frame: pd.DataFrame, folder) -> tuple[str, dict]:
    """Write a page and return it with the curves packed into it."""
    frame.to_csv(folder / "my run.csv", index=False)
    write_page(folder / "my run.csv", folder / "plots" / "my run.html")
    page = (folder / "plots" / "my run.html").read_text(encoding="utf-8")
    packed = re.search(r'id="data">([^<]*)<', page)[1]

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    text = gzip.decompress(base64.b64decode(packed)).decode()
    return page, json.loads(text, parse_constant=refuse)


def test_page_is_complete_offline_and_small(tmp_path):
    page, data = page_of(log(3000), tmp_path)
    assert "<title>my run</title>" in page
    assert not re.search(r"https?://|\ssrc=|<link|@import", page)
    assert len(page) < 5e6
    shown = [column for panel in data["panels"] for column in panel["columns"].values()]
    assert sorted(shown) == sorted(METRICS)
    assert page.count('class="chart"') == len(data["panels"])
    assert "evaluation/&lt;new&gt;/wins" in page and "<new>" not in page
    for axis, label in AXES.items():
        assert f'value="{axis}">{label}' in page and len(data["axes"][axis]) == 3000
    assert max(len(trace["y"]) for panel in data["panels"] for trace in panel["traces"]) <= 2000
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["my run.html"]


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
    _, data = page_of(frame, tmp_path)
    traces = {trace["name"]: trace for panel in data["panels"] for trace in panel["traces"]}
    assert len(traces["std (raw)"]["y"]) == 104 and len(traces["loss (raw)"]["y"]) == 119
    assert traces["lonely (raw)"]["y"] == [] and traces["draws"]["rows"] == [49, 99]


def test_last_row_may_be_half_written(tmp_path):
    text = log(3).to_csv(index=False)
    (tmp_path / "run.csv").write_text(text[:-200])
    write_page(tmp_path / "run.csv", tmp_path / "run.html")


def test_thinning_keeps_spikes():
    values = pd.Series(np.zeros(100_001))
    values[70_007] = 9.0
    thin = extremes(values)
    assert len(thin) <= 2000 and thin[70_007] == 9.0


def test_focus_hides_old_outliers_but_not_a_fresh_blow_up():
    data = pd.DataFrame({"loss": np.r_[1e6, np.linspace(1, 2, 999)]})
    assert focus(data)["range"][1] < 3
    assert focus(data[::-1]) == {}


def test_wilson_interval():
    assert wilson_interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson_interval(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
