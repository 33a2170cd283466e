"""Mathematics, config, files: against formulas, NumPy and what a user may get wrong."""

import ctypes
import math
import pickle
import random
import re
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from utils import (
    SCHEMA,
    Beside,
    Every,
    Metrics,
    UserError,
    check_config,
    flatten,
    keep_freed_memory,
    lambda_returns,
    load_config,
    load_newest,
    load_sealed,
    load_tensors,
    one_line,
    pick_device,
    random_state,
    restore_random_state,
    save_sealed,
    seed_everything,
    shrink_to_quantile,
    symexp,
    symlog,
    two_hot,
    update_return_scale,
    use_threads,
    wilson_interval,
    write_atomically,
)

CONFIGS = Path(__file__).parent.parent / "configs"

# ---------------------------------------------------------------------------- mathematics


@given(st.floats(-1e5, 1e5))
def test_symexp_inverts_symlog(number):
    x = torch.tensor(number, dtype=torch.float64)
    expected = math.copysign(math.log(1 + abs(number)), number)
    assert symlog(x).item() == pytest.approx(expected, abs=1e-12)
    assert symexp(symlog(x)).item() == pytest.approx(number, rel=1e-9, abs=1e-12)


BINS = symexp(torch.linspace(-3, 3, 9))


def dense_two_hot(values):
    indices, weights = two_hot(values, BINS)
    return torch.zeros(*values.shape, len(BINS)).scatter(-1, indices, weights)


@given(st.floats(float(BINS[0]), float(BINS[-1]), width=32))
def test_two_hot_round_trip_on_two_neighbours(number):
    weights = dense_two_hot(torch.tensor(number))
    used = weights.nonzero().flatten().tolist()
    assert weights.min() >= 0 and weights.sum().item() == pytest.approx(1)
    assert (weights * BINS).sum().item() == pytest.approx(number, rel=1e-4, abs=1e-4)
    assert len(used) == 1 or (len(used) == 2 and used[1] == used[0] + 1)
    assert BINS[used[0]] <= number + 1e-6 and BINS[used[-1]] >= number - 1e-6


def test_two_hot_clamps_and_keeps_shape():
    weights = dense_two_hot(torch.tensor([[-1e9, 1e9, float(BINS[4])]]))
    assert weights.shape == (1, 3, 9)
    assert torch.equal(weights[0], torch.eye(9)[[0, 8, 4]])


def naive_lambda_returns(rewards, discounts, values, return_lambda):
    """The double sum: n-step returns mixed with the weights (1 - lambda) lambda^(n-1)."""
    horizon = len(rewards)
    returns = np.zeros_like(rewards)
    for t in range(horizon):
        n_step = []
        for n in range(1, horizon - t + 1):
            total, product = 0.0, 1.0
            for k in range(n):
                total = total + product * rewards[t + k]
                product = product * discounts[t + k]
            n_step.append(total + product * values[t + n - 1])
        for n, value in enumerate(n_step[:-1]):
            returns[t] += (1 - return_lambda) * return_lambda**n * value
        returns[t] += return_lambda ** (len(n_step) - 1) * n_step[-1]
    return returns


@pytest.mark.parametrize("return_lambda", [0.0, 0.5, 0.95, 1.0])
def test_lambda_returns_are_the_naive_double_sum(return_lambda):
    generator = np.random.default_rng(0)
    rewards, values = generator.normal(size=(2, 7, 5))
    discounts = generator.uniform(0, 1, (7, 5)) * (generator.uniform(size=(7, 5)) > 0.3)
    expected = naive_lambda_returns(rewards, discounts, values, return_lambda)
    tensors = (torch.from_numpy(x) for x in (rewards, discounts, values))
    assert np.allclose(lambda_returns(*tensors, return_lambda).numpy(), expected, atol=1e-12)


def test_return_scale_follows_the_percentiles():
    returns = torch.randn(6, 50)
    low, high = np.percentile(returns.numpy(), [5, 95])
    scale = torch.tensor(3.0)
    update_return_scale(scale, returns, decay=0.9)
    assert scale.item() == pytest.approx(0.9 * 3 + 0.1 * (high - low), rel=1e-5)
    update_return_scale(scale, returns, decay=0.0)
    assert scale.item() == pytest.approx(high - low, rel=1e-5)


@pytest.mark.parametrize(
    ("wins", "games", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0, 0.2775), (10, 10, 0.7225, 1), (50, 100, 0.4038, 0.5962)],
)
def test_wilson_interval_against_published_values(wins, games, low, high):
    assert wilson_interval(wins / games, games) == pytest.approx((low, high), abs=2e-4)


# ---------------------------------------------------------------------------- config


def written(tmp_path, tree):
    path = tmp_path / "mine.yml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(tree)))
    return str(path)


def refusal(*arguments):
    """The one line with which `load_config` refuses."""
    with pytest.raises(UserError) as caught:
        load_config(*arguments)
    message = str(caught.value)
    assert "\n" not in message and message
    return message


def plain_config():
    return OmegaConf.to_container(OmegaConf.load(CONFIGS / "hockey.yml"))


def parent_of(tree, key):
    """The dict that holds the last word of a dotted key, and that word."""
    *path, last = key.split(".")
    for word in path:
        tree = tree[word]
    return tree, last


def test_the_wilson_interval_stays_within_its_bounds():
    for games in range(1, 300):
        assert wilson_interval(0.0, games)[0] >= 0 and wilson_interval(1.0, games)[1] <= 1


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yml")), ids=lambda path: path.name)
def test_every_config_that_is_shipped_loads(path):
    config = load_config(path.name)
    assert set(dict(flatten(OmegaConf.to_container(config)))) <= set(SCHEMA)
    with pytest.raises(Exception, match="(?i)read-only"):
        config.seed = 3


def test_the_schema_is_the_hockey_config():
    assert set(dict(flatten(plain_config()))) == set(SCHEMA)


def test_every_missing_key_is_named():
    for key in SCHEMA:
        tree = plain_config()
        parent, last = parent_of(tree, key)
        del parent[last]
        with pytest.raises(UserError) as caught:
            check_config(tree, "mine.yml")
        assert "mine.yml" in str(caught.value) and f"'{key}'" in str(caught.value)


@given(st.sampled_from(sorted(SCHEMA)), st.data())
def test_every_typo_is_named_with_the_nearest_key(key, data):
    tree = plain_config()
    parent, last = parent_of(tree, key)
    place = data.draw(st.integers(0, len(last)))
    typo = last[:place] + "q" + last[place:]
    parent[typo] = parent.pop(last)
    with pytest.raises(UserError) as caught:
        check_config(tree, "mine.yml")
    message = str(caught.value)
    wrong = key.removesuffix(last) + typo
    assert "mine.yml" in message and f"'{wrong}'" in message and "\n" not in message
    assert f"did you mean '{key}'?" in message


def wrong_values(rule):
    """Values that no key with this rule of SCHEMA may have."""
    if isinstance(rule, set):
        return ["quick", 7, None, True, ["none"]]
    if isinstance(rule, list):
        return ["weak", 3, None, True, *([wrong] for wrong in wrong_values(rule[0]))]
    if isinstance(rule, tuple):
        kind, low, high = rule
        wrong = ["fast", None, True, [1], math.nan, math.inf, -math.inf]
        wrong += [low - 1] if low is not None else []
        wrong += [high + 1] if high is not None else []
        return wrong + ([1.5, "3"] if kind is int else ["1e-3x"])
    return {
        str: [3, None, True, ["a"]],
        bool: ["maybe", 1, 0.0, None],
    }[rule]


@pytest.mark.parametrize("key", sorted(SCHEMA))
def test_every_wrong_value_is_refused_in_one_line(key):
    for value in wrong_values(SCHEMA[key]):
        tree = plain_config()
        parent, last = parent_of(tree, key)
        parent[last] = value
        with pytest.raises(UserError) as caught:
            check_config(tree, "mine.yml")
        message = str(caught.value)
        assert "mine.yml" in message and key in message and "\n" not in message, value


def test_a_key_of_an_older_version_is_answered_with_its_name_of_today():
    config = OmegaConf.to_container(load_config("hockey.yml"))
    config["dreamer"]["imagination_precision"] = config["dreamer"].pop("precision")
    with pytest.raises(UserError, match=r"did you mean 'dreamer\.precision'"):
        check_config(config, "old.yml")


def test_a_section_that_is_no_section_is_refused():
    for value in (5, None, "x", [1], {}):
        with pytest.raises(UserError, match="dreamer"):
            check_config(plain_config() | {"dreamer": value}, "mine.yml")


def test_overrides():
    config = load_config("hockey", ["seed=5", "hockey.mirror=false", "dreamer.actor_rate=1e-4"])
    assert (config.seed, config.hockey.mirror, config.dreamer.actor_rate) == (5, False, 1e-4)
    files = load_config("hockey.yml", ["opponents.files=[a.safetensors,b.safetensors]"])
    assert list(files.opponents.files) == ["a.safetensors", "b.safetensors"]
    assert load_config("hockey.yml").seed == 0


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("dreamer.actor_rate=fast", "a number"),
        ("dreamer.hidden_sise=3", "dreamer.hidden_size"),
        ("hockey=3", "'hockey'"),
        ("seed", "key=value"),
        ("=3", "key=value"),
        ("seed=", "whole number"),
        ("seed=1.5", "whole number"),
        ("seed=[", "seed=["),
        ("seed=${nothing}", "nothing"),
        ("run=a/b", "plain file name"),
        ("run=..", "plain file name"),
        ("run=''", "plain file name"),
        ("dreamer.std_min=2", "std_min"),
    ],
)
def test_wrong_overrides_are_refused_in_one_line(override, word):
    assert word in refusal("hockey.yml", [override])


@pytest.mark.parametrize("text", ["[1, 2]", "word", "a: [", "a: 1\na: 2", "\x00", "", "5: 3"])
def test_files_that_are_no_config_are_refused_in_one_line(tmp_path, text):
    path = tmp_path / "mine.yml"
    path.write_text(text)
    assert "mine.yml" in refusal(str(path))


def test_unknown_config_file_and_directory(tmp_path):
    message = refusal("hokey.yml")
    assert "hokey.yml" in message and "hockey.yml" in message
    assert str(tmp_path) in refusal(str(tmp_path))
    binary = tmp_path / "binary.yml"
    binary.write_bytes(b"\xff\xfe\x00\xd8")
    assert "binary.yml" in refusal(str(binary))


def test_hockey_keys_belong_to_hockey_only(tmp_path):
    tree = plain_config() | {"environment": "Pendulum-v1"}
    assert "hockey." in refusal(written(tmp_path, tree))
    del tree["hockey"], tree["opponents"]
    assert load_config(written(tmp_path, tree)).environment == "Pendulum-v1"


# ---------------------------------------------------------------------------- seeds and time


def test_the_random_state_can_be_taken_up_again(tmp_path):
    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

    seed_everything(4)
    np.random.randn()  # half of a pair is kept
    torch.save(random_state(), tmp_path / "state.pt")
    drawn = draw()
    seed_everything(5)
    assert draw() != drawn
    restore_random_state(load_tensors(tmp_path / "state.pt"))
    assert draw() == drawn
    seed_everything(4)
    np.random.randn()
    assert draw() == drawn


@pytest.mark.parametrize("platform", ["linux", "win32", "darwin"])
def test_memory_is_kept_where_the_c_library_can(monkeypatch, platform):
    asked = []
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(
        ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=lambda *x: asked.append(x))
    )
    keep_freed_memory()
    assert len(asked) == (2 if platform == "linux" else 0)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())  # another C library
    keep_freed_memory()


@pytest.mark.parametrize(("asked", "used"), [(0, 3), (1, 1), (2, 2), (3, 3), (64, 3)])
def test_no_more_threads_than_cores(asked, used):
    torch.set_num_threads(3)
    use_threads(asked)
    assert torch.get_num_threads() == used


CPU = torch.device("cpu")


def test_beside_has_half_of_the_cores_for_either_and_shares_the_work():
    torch.set_num_threads(4)
    beside, seen, started, may_end = Beside(), [], threading.Event(), threading.Event()

    def first():
        started.set()
        may_end.wait(60)
        seen.append((threading.current_thread(), torch.get_num_threads()))

    def meanwhile():
        started.wait(60)
        seen.append((threading.current_thread(), torch.get_num_threads()))

    def second():  # the caller takes it, as the thread waits for its end
        meanwhile()
        may_end.set()

    for _ in range(2):  # the thread is used again
        started.clear()
        may_end.clear()
        beside([first, second], meanwhile, CPU)
        assert torch.get_num_threads() == 4
    caller = (threading.current_thread(), 2)
    assert seen[:2] == [caller] * 2 and seen[3:5] == [caller] * 2
    assert seen[2] == seen[5] and seen[2][0] != caller[0] and seen[2][1] == 2


@pytest.mark.parametrize(("threads", "device"), [(1, CPU), (3, torch.device("meta"))])
def test_beside_goes_one_by_one_where_there_is_no_core_to_spare(threads, device):
    torch.set_num_threads(threads)
    beside, seen = Beside(), []
    here = [partial(seen.append, name) for name in "abc"]
    beside(here[:2], here[2], device)
    beside(here[:2], None, device)
    assert seen == [*"abc", *"ab"] and beside.thread is None


@pytest.mark.parametrize("threads", [1, 2])
def test_beside_lets_no_error_pass_and_leaves_nothing_running(threads):
    torch.set_num_threads(threads)
    beside, ended = Beside(), []

    def slow():
        time.sleep(0.1)
        ended.append(1)

    def wrong():
        raise KeyError

    with pytest.raises(KeyError):
        beside([wrong], None, CPU)
    with pytest.raises(KeyError):
        beside([slow], wrong, CPU)
    assert ended == [1] and torch.get_num_threads() == threads
    beside([slow], slow, CPU)
    assert ended == [1] * 3


def test_an_unknown_device_is_refused():
    assert pick_device("cpu").type == "cpu"
    for name in ("tpu9", "cuda:99"):
        with pytest.raises(UserError, match=name):
            pick_device(name)


@given(st.integers(1, 20), st.lists(st.integers(0, 7), max_size=40), st.integers(0, 50))
def test_every_is_true_once_per_multiple_passed(interval, jumps, start):
    should = Every(interval, start)
    step = start
    for jump in jumps:
        before, step = step, step + jump
        passed = any(n % interval == 0 for n in range(before + 1, step + 1))
        assert should(step) == passed
        assert not should(step)


# ---------------------------------------------------------------------------- files


@pytest.mark.parametrize("error", [OSError("disk full"), RuntimeError("disk full")])
def test_a_failed_write_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "folder" / "file"
    write_atomically(path, lambda file: Path(file).write_text("old"))

    def fail(file):
        Path(file).write_text("half")
        raise error

    with pytest.raises(UserError, match="file.*disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


def test_a_file_where_the_folder_should_be_is_one_sentence(tmp_path):
    (tmp_path / "metrics").write_text("")
    with pytest.raises(UserError, match="metrics"):
        write_atomically(tmp_path / "metrics" / "run.csv", lambda file: None)


class Payload:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_payload_in_a_checkpoint_is_refused_and_never_executed(tmp_path):
    mark = tmp_path / "executed"
    torch.save({"agent": Payload(mark)}, tmp_path / "zip.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Payload(mark)))
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("hello")
    for name in ("zip.pt", "raw.pt", "empty.pt", "text.pt", "missing.pt"):
        with pytest.raises(UserError, match=re.escape(name)) as caught:
            load_tensors(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not mark.exists()
    pickle.loads((tmp_path / "raw.pt").read_bytes())
    assert mark.exists()  # the payload was a live one


def test_metrics_average_and_keep_the_csv(tmp_path):
    metrics = Metrics(tmp_path / "run.csv")
    metrics.add({"loss": torch.tensor(1.0), "wins": True})
    metrics.add({"loss": 3.0, "wins": False})
    row = metrics.write(gradient_steps=10, environment_steps=40, minutes=2.0)
    assert row["loss"] == 2 and row["wins"] == 0.5
    assert row["speed/environment_steps_per_second"] == pytest.approx(40 / 120)
    row = metrics.write(gradient_steps=20, environment_steps=40, minutes=3.0)
    assert "loss" not in row and row["speed/gradient_steps_per_second"] == pytest.approx(10 / 60)
    lines = (tmp_path / "run.csv").read_text().splitlines()
    assert len(lines) == 3 and lines[0].startswith("gradient_steps,environment_steps,minutes")


def test_a_metric_that_is_not_finite_stops_after_the_csv_is_written(tmp_path):
    metrics = Metrics(tmp_path / "run.csv")
    metrics.add({"loss": torch.tensor(float("nan"))})
    with pytest.raises(UserError, match="loss is not finite at gradient step 7"):
        metrics.write(gradient_steps=7, environment_steps=1, minutes=1.0)
    assert (tmp_path / "run.csv").exists()


def test_the_first_metric_that_went_wrong_is_named_with_its_step(tmp_path):
    metrics, bad = Metrics(tmp_path / "run.csv"), float("nan")
    for norm, loss in ((1.0, 1.0), (1.0, float("inf")), (bad, bad)):
        metrics.add({"norm": norm, "loss": torch.tensor(loss)})
    with pytest.raises(UserError, match="loss is not finite at gradient step 99"):
        metrics.check(100)


def test_metrics_go_on_after_a_restore(tmp_path):
    one, two = Metrics(tmp_path / "one.csv"), Metrics(tmp_path / "two.csv")
    axes = {"gradient_steps": 1, "environment_steps": 2, "minutes": 0.5}
    for number in (0.1, 0.2, torch.tensor(0.4)):
        one.add({"loss": number})
        torch.save(one.state(), tmp_path / "state.pt")
        two.restore_state(load_tensors(tmp_path / "state.pt"))
    one.write(**axes)
    two.write(**axes)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    two.restore_state({"rows": [], "pending": {}, "seconds": {}})
    assert not (tmp_path / "two.csv").exists()


def test_a_sealed_file_opens_only_as_it_was_written(tmp_path):
    path, before = tmp_path / "state.pt", tmp_path / "previous.pt"
    save_sealed(path, {"step": 1}, before)
    assert load_sealed(path) == {"step": 1} and not before.exists()
    save_sealed(path, {"step": 2}, before)
    assert load_sealed(path) == {"step": 2} and load_sealed(before) == {"step": 1}
    whole = path.read_bytes()
    for position in range(len(whole)):  # every byte, also those that a zip's checksums leave out
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(UserError, match="state.pt is damaged"):
            load_sealed(path)
        assert load_newest([path, before])[:2] == (before, {"step": 1})
    with pytest.raises(UserError, match="There is no checkpoint"):
        load_newest([tmp_path / "gone.pt"])


def test_one_line():
    assert one_line(ValueError("a\n  b")) == "a b" and one_line(ValueError()) == "ValueError"


def test_long_gradients_are_shrunk_to_a_quantile():
    gradient = torch.tensor([[3.0, 4.0], [0.0, 1.0], [600.0, 800.0], [0.0, 0.0], [0.0, 2.0]])
    shrunk = shrink_to_quantile(gradient, 0.75)
    assert torch.allclose(shrunk.norm(dim=-1), torch.tensor([5.0, 1.0, 5.0, 0.0, 2.0]))
    assert torch.allclose(shrunk[2], torch.tensor([3.0, 4.0]))  # the direction stays
    assert torch.equal(shrink_to_quantile(gradient, 1.0), gradient)
    assert torch.equal(shrink_to_quantile(torch.zeros(3, 2), 0.5), torch.zeros(3, 2))
