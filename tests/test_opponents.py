"""Who stands on the other side: names, frame skip and memory of agents, shares of the pool."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_config

import checkpoint
import main
from config import find_config, load_config
from dreamer import Dreamer
from environments import make_environments
from hockey_env import BasicOpponent
from opponents import (
    IN_A_ROW,
    AgentOpponent,
    OpponentPool,
    called,
    find_agent,
    find_player,
    load,
)
from utils import UserError


def make_agent(**overrides):
    return Dreamer(make_config(**overrides), 18, 4)


def make_pool(games=4, **opponents):
    """A pool whose shares are zero but for those given."""
    shares = dict.fromkeys(("weak", "strong", "snapshots", "files_share"), 0.0)
    overrides = {f"opponents__{key}": value for key, value in (shares | opponents).items()}
    return OpponentPool(make_config(**overrides).opponents, games)


def observations(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 18)).astype(np.float32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """saved(name): the path of a saved agent."""
    folder = tmp_path_factory.mktemp("agents")

    def save(name, sizes=(18, 4), **settings):
        path = folder / f"{name}.safetensors"
        Dreamer(make_config(**settings), *sizes).save(path)
        return path

    return save


def shares_of(pool, draws=2000):
    """How often each name was chosen, as shares."""
    names = [pool.choose().name for _ in range(draws)]
    return {name: names.count(name) / draws for name in set(names)}


def close(share, expected, draws=2000):
    """Within five standard deviations of a binomial share."""
    return abs(share - expected) < 5 * (expected * (1 - expected) / draws) ** 0.5


# ---------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["weak", "strong", "random", "dribbler"])
def test_bots_by_name(name):
    rows = observations(3)
    first, second, other = (load(name, games=3, seed=seed).act(rows) for seed in (1, 1, 2))
    assert first.shape == (3, 4) and first.dtype == np.float32 and abs(first).max() <= 1
    assert np.array_equal(first, second) and not np.array_equal(first, other)
    opponent = load(name, games=3)
    assert opponent.name == name and opponent.act(rows[0]).shape == (4,)
    opponent.reset()
    opponent.reset([2])
    assert opponent.act(rows[:1], [2]).shape == (1, 4)


def test_the_bots_of_different_games_are_different_players():
    rows = np.zeros((3, 18))
    for name in ("weak", "strong", "random", "dribbler"):
        opponent = load(name, games=3)
        actions = np.stack([opponent.act(rows) for _ in range(30)], 1)
        assert len(np.unique(actions.reshape(3, -1), axis=0)) == 3


def test_weak_and_strong_are_the_labs():
    rows = observations(50)
    seed = int(np.random.SeedSequence(3).generate_state(1)[0])
    for name, weak in (("weak", True), ("strong", False)):
        ours, theirs = load(name, seed=3), BasicOpponent(weak=weak, seed=seed)
        for row in rows:
            assert np.allclose(ours.act(row), theirs.act(row))


@pytest.mark.parametrize("spec", ["week", "missing.safetensors", "folder/agent.pt", ""])
def test_unknown_opponents_are_refused_in_one_line(spec):
    with pytest.raises(UserError) as caught:
        load(spec)
    assert f"{spec}" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_is_an_opponent_if_it_was_trained_for_hockey(saved):
    opponent = load(saved("mine"), games=2)
    assert opponent.name == "mine" and opponent.act(observations(2)).shape == (2, 4)
    with pytest.raises(UserError, match="pendulum.*not trained for hockey"):
        load(saved("pendulum", (3, 1)))


# ---------------------------------------------------------------------------- agents


@pytest.mark.parametrize("frame_skip", [1, 3])
def test_an_agent_decides_every_frame_and_its_memories_take_turns(frame_skip):
    agent = make_agent(hockey__frame_skip=frame_skip)
    opponent = AgentOpponent(agent, 2, "agent", deterministic=True)
    references = [agent.player() for _ in range(frame_skip)]
    before = None
    for frame in range(3 * frame_skip):
        rows = observations(2, frame)
        expected = references[frame % frame_skip].act(rows, deterministic=True)
        actions = opponent.act(rows)
        assert np.allclose(actions, expected, atol=1e-6)
        assert before is None or not np.allclose(actions, before, atol=1e-6)
        before = actions


def test_in_training_agents_hold_their_actions_and_in_evaluations_they_do_not(saved):
    mine, snapshot = str(saved("mine")), str(saved("snapshot_0000001"))
    settings = make_config(opponents__files=[mine], opponents__files_share=0.5).opponents
    pool = OpponentPool(settings, 2)
    for name in ("snapshot_0000001", "snapshot_0000002", "snapshot_0000003"):
        pool.add_snapshot(saved(name))
    for one in (pool.fixed[mine], pool.snapshots[snapshot]):
        actions = [one.act(observations(2, frame)) for frame in range(2 * one.frame_skip)]
        first, second = actions[: one.frame_skip], actions[one.frame_skip :]
        assert all(np.array_equal(action, first[0]) for action in first)
        assert not np.array_equal(first[0], second[0])
    rivals = pool.rivals(2, 0)
    for name in ("mine", "oldest"):
        actions = [rivals[name].act(observations(2, frame)) for frame in range(2)]
        assert not np.array_equal(*actions)


def test_each_game_has_its_own_memory_and_frames():
    agent = make_agent(hockey__frame_skip=2)
    batched = AgentOpponent(agent, 3, "batched", deterministic=True)
    singles = [AgentOpponent(agent, 1, "single", deterministic=True) for _ in range(3)]
    generator = np.random.default_rng(0)
    differences = 0
    for frame in range(40):
        rows = observations(3, frame)
        if generator.uniform() < 0.3:
            game = int(generator.integers(3))
            batched.reset([game])
            singles[game].reset()
        playing = np.flatnonzero(generator.uniform(size=3) < 0.7)  # games that rest miss frames
        if len(playing) == 0:
            continue
        actions = batched.act(rows[playing], playing)
        expected = np.array([singles[game].act(rows[game]) for game in playing])
        assert np.allclose(actions, expected, atol=1e-5)
        differences += len(playing) > 1 and not np.allclose(expected[0], expected[1])
    assert differences > 5


def test_reset_starts_the_frames_and_the_memory_anew():
    opponent = AgentOpponent(make_agent(hockey__frame_skip=4), 2, "agent", deterministic=True)
    first = opponent.act(observations(2))
    opponent.act(observations(2, 1))
    opponent.reset()
    assert np.array_equal(opponent.act(observations(2)), first)


def test_an_opponent_does_not_disturb_the_agent_it_plays():
    agent = make_agent()
    agent.act(observations(5))
    before = [part.clone() for part in agent.memory]
    opponent = AgentOpponent(agent, 2, "agent")
    opponent.act(observations(2))
    opponent.reset()
    assert all(np.array_equal(*pair) for pair in zip(before, agent.memory, strict=True))


def test_a_file_plays_as_its_run_evaluates(saved):
    def spread(actions):
        opponent = load(saved(actions, evaluation_actions=actions), games=100)
        return np.ptp(opponent.act(np.repeat(observations(1), 100, 0)), 0).max()

    assert spread("mode") < 1e-5 and spread("sample") > 0.1


# ---------------------------------------------------------------------------- the pool


def test_shares_are_realised():
    pool = make_pool(weak=0.2, strong=0.5, files="[random]", files_share=0.3)
    shares = shares_of(pool)
    assert close(shares["weak"], 0.2) and close(shares["strong"], 0.5)
    assert close(shares["random"], 0.3)
    unnormalised = shares_of(make_pool(weak=0.1, strong=0.3))
    assert close(unnormalised["weak"], 0.25) and set(unnormalised) == {"weak", "strong"}


def test_the_share_of_snapshots_goes_to_the_others_until_there_is_one(saved):
    pool = make_pool(weak=0.3, strong=0.3, snapshots=0.4)
    assert close(shares_of(pool)["weak"], 0.5)
    pool.add_snapshot(saved("snapshot_1"))
    assert close(shares_of(pool)["snapshot_1"], 0.4)
    only = make_pool(snapshots=1.0)
    assert len(shares_of(only)) == 1
    only.add_snapshot(saved("snapshot_1"))
    assert set(shares_of(only)) == {"snapshot_1"}


def test_files_have_their_share(saved):
    pool = make_pool(files=f"[{saved('one')},{saved('two')}]", files_share=0.5, weak=0.5)
    shares = shares_of(pool)
    assert close(shares["one"], 0.25) and close(shares["two"], 0.25)


def test_pools_without_anybody_are_refused():
    with pytest.raises(UserError, match="opponents"):
        make_pool()
    with pytest.raises(UserError, match="files"):
        make_pool(files_share=0.5, weak=0.5)
    with pytest.raises(UserError, match="gone.safetensors"):
        make_pool(weak=0.5, files="[gone.safetensors]")


def test_a_bot_named_among_the_files_is_that_bot():
    pool = make_pool(files="[random,weak]", files_share=0.6, weak=0.4)
    shares = shares_of(pool)
    assert close(shares["random"], 0.3) and close(shares["weak"], 0.7)


def test_pfsp_prefers_equals_and_uniform_does_not(saved):
    paths = [saved(f"snapshot_{number}") for number in range(3)]
    for choice in ("pfsp", "uniform"):
        pool = make_pool(snapshots=1.0, choice=choice)
        for path in paths:
            pool.add_snapshot(path)
        for _ in range(200):
            pool.record("snapshot_0", 1)
            pool.record("snapshot_1", 0)
            pool.record("snapshot_2", -1)
        shares = shares_of(pool, 600 * IN_A_ROW)  # 600 turns
        if choice == "uniform":
            assert all(close(share, 1 / 3, 600) for share in shares.values())
        else:  # x(1-x) is 1/4 for the equal, 0 for the others; a little is left for those
            assert shares["snapshot_1"] > 0.85
            assert 0 < shares["snapshot_0"] < 0.1 and 0 < shares["snapshot_2"] < 0.1


def test_snapshots_take_turns(saved):
    pool = make_pool(snapshots=0.5, weak=0.5, choice="uniform")
    for number in range(3):
        pool.add_snapshot(saved(f"snapshot_{number}"))
    names = [pool.choose().name for _ in range(1000)]
    turns = np.array([name for name in names if name != "weak"])
    turns = turns[: len(turns) // IN_A_ROW * IN_A_ROW].reshape(-1, IN_A_ROW)
    assert len(turns) > 20 and (turns == turns[:, :1]).all()
    assert len(set(turns[:, 0])) == 3


def test_who_leaves_the_pool_loses_its_turn(saved):
    pool = make_pool(snapshots=1.0, snapshots_kept=1)
    for name in ("snapshot_1", "snapshot_2"):
        pool.add_snapshot(saved(name))
        assert pool.choose().name == name


def test_only_the_newest_snapshots_are_kept(saved):
    pool = make_pool(snapshots=1.0, snapshots_kept=2, choice="uniform")
    for number in range(5):
        pool.add_snapshot(saved(f"snapshot_{number}"))
    assert set(shares_of(pool)) == {"snapshot_3", "snapshot_4"}


def test_an_evaluation_asks_for_both_bots_and_three_former_selves(saved):
    pool = make_pool(snapshots=1, snapshots_kept=4)
    bots = {"weak": "weak", "strong": "strong"}

    def names():
        return {key: rival.name for key, rival in pool.rivals(4, seed=0).items()}

    paths = [str(saved(f"snapshot_{number:07d}")) for number in range(10, 60, 10)]
    for path in paths[:2]:
        pool.add_snapshot(path)
    assert names() == bots and pool.metrics(60) == {}
    for path in paths[2:]:
        pool.add_snapshot(path)
    steps = {"oldest": 20, "middle": 40, "newest": 50}
    assert names() == bots | {name: f"snapshot_{step:07d}" for name, step in steps.items()}
    assert pool.metrics(60) == {"pool/oldest": 40, "pool/middle": 20, "pool/newest": 10}


def test_an_evaluation_meets_the_files_too_trained_against_or_not(saved):
    rival = saved("rival")
    pool = make_pool(weak=1, files=f"[random, {rival}]")
    rivals = pool.rivals(4, seed=0)
    assert list(rivals) == ["weak", "strong", "random", "rival"]
    rival.unlink()
    observations = np.zeros((4, 18), np.float32)
    actions = [pool.rivals(4, seed=0)["rival"].act(observations) for _ in range(2)]
    assert np.array_equal(*actions)  # the most likely ones, of a game of its own
    code = rival.with_name("still.py")
    code.write_text("class Still:\n    def act(self, observation):\n        return [0, 0, 0, 0]\n")
    pool = make_pool(weak=1, files=f"['{code}:Still']")
    code.unlink()
    pool.start(1)
    assert not pool.rivals(4, seed=0)["Still"].act(observations).any()
    pool = make_pool(weak=1)
    assert {pool.choose().name for _ in range(20)} == {"weak"}


def test_the_mix_adds_up_to_one():
    pool = make_pool(weak=1.0)
    assert pool.metrics(0) == {}
    for name, number in (("weak", 5), ("snapshot_1", 2), ("snapshot_2", 1), ("strong", 2)):
        for _ in range(number):
            pool.record(name, 1)
    expected = {"weak": 0.5, "strong": 0.2, "snapshots": 0.3}
    assert pool.metrics(9) == pytest.approx({f"opponents/{k}": v for k, v in expected.items()})


def test_a_restored_pool_goes_on_in_the_same_way(saved):
    shares = {"weak": 0.2, "strong": 0.2, "files": "[random]", "files_share": 0.2}
    pool, other = (make_pool(**shares, snapshots=0.4) for _ in range(2))
    for number in range(3):
        pool.add_snapshot(saved(f"snapshot_{number}"))
        pool.record(f"snapshot_{number}", 1)
    pool.choose()
    other.restore(json.loads(json.dumps(pool.state())))
    assert pool.metrics(7) == other.metrics(7)
    names = []
    for seed, one in ((4, pool), (4, other), (5, pool)):
        one.start(seed)
        names.append([one.choose().name for _ in range(1000)])
    assert names[0] == names[1] != names[2] and len(set(names[0])) == 6


def test_a_start_makes_all_opponents_anew(saved):
    pool = make_pool(files=f"[random,{saved('file')}]", files_share=0.4, weak=0.3, strong=0.3)
    pool.add_snapshot(saved("snapshot_1"))
    names, played = ["weak", "strong", "random", "file", "snapshot_1"], []
    for seed in (4, 4, 5):
        pool.start(seed)
        torch.manual_seed(seed)
        everybody = [*pool.fixed.values(), *pool.snapshots.values()]
        assert [one.name for one in everybody] == names
        played.append([[one.act(observations(4, n)) for n in range(5)] for one in everybody])
    for name, first, again, other in zip(names, *played, strict=True):
        assert np.array_equal(first, again), name
        assert np.array_equal(first, other) == (name == "file"), name


BOT = """
class Bot:
    def act(self, observation):
        return [{}, 0, 0, 0]
"""


def test_a_start_reads_no_file(saved, tmp_path):
    """So an agent that is replaced or gone, the run's own best say, changes nothing."""
    path, code = tmp_path / "best.safetensors", tmp_path / "code.py"
    path.write_bytes(saved("first").read_bytes())
    code.write_text(BOT.format(0.5))
    pool = make_pool(files=f"[{path},'{code}:Bot']", files_share=1.0)
    found = []
    for change in (None, lambda: path.write_bytes(saved("second").read_bytes()), path.unlink):
        if change:
            change()
            code.unlink(missing_ok=True)
        pool.start(1)
        found.append([one.act(observations(4)) for one in pool.fixed.values()])
        pool.state()
    for now in found[1:]:
        assert all(map(np.array_equal, now, found[0]))


def test_a_file_that_has_changed_when_the_run_goes_on_is_said(saved, tmp_path, capsys):
    path, code = tmp_path / "best.safetensors", tmp_path / "code.py"
    keys = {"files": f"[{path},random,'{code}:Bot']", "files_share": 1.0}
    state = {"snapshots": [], "played": {}, "results": {}}  # an older run's: without files
    for number in range(3):
        if number != 1:
            path.write_bytes(saved(f"agent_{number}").read_bytes())
            code.write_text(BOT.format(number / 2))
        pool = make_pool(**keys)
        pool.restore(state)
        state = json.loads(json.dumps(pool.state()))
        lines = capsys.readouterr().err.splitlines()
        assert [line.split()[0] for line in lines] == [str(path), f"{code}:Bot"] * (number == 2)


def test_deleted_snapshots_are_written_again(saved, tmp_path):
    path = tmp_path / "snapshot_1.safetensors"
    path.write_bytes(saved("mine").read_bytes())
    pool = make_pool(snapshots=1.0)
    pool.add_snapshot(path)
    tensors, metadata = checkpoint.load(path)
    path.unlink()
    pool.state()
    again, found = checkpoint.load(path)
    assert found == metadata and checkpoint.checksum(again, {}) == checkpoint.checksum(tensors, {})


# ---------------------------------------------------------------------------- finding players


def test_find_agent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("run/latest", "run/best", "checkpoints/champion", "checkpoints/run/best"):
        path = tmp_path / f"{name}.safetensors"
        with pytest.raises(UserError, match="There is no"):
            find_agent(path)
        path.parent.mkdir(exist_ok=True, parents=True)
        path.touch()
        assert find_agent(path) == path
        assert path.stem == "champion" or find_agent(path.parent) == path
    assert find_agent("champion") == Path("checkpoints/champion.safetensors")
    assert find_agent("run") == Path("run/best.safetensors")  # a path goes first
    (tmp_path / "run").rename("elsewhere")
    assert find_agent("run") == Path("checkpoints/run/best.safetensors")
    with pytest.raises(UserError, match="'chmpion'.*checkpoints/ has champion, .*run"):
        find_agent("chmpion")


def test_the_opponents_of_champion_yml_are_shipped_and_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = load_config("champion.yml", []).opponents.files
    actions = [load(name, 3).act(observations(3)) for name in files]
    assert all(np.isfinite(action).all() for action in actions)
    pairs = itertools.combinations(actions, 2)
    assert len(files) == 8 and not any(np.allclose(*pair) for pair in pairs)


def test_names_are_looked_up_here_then_beside_the_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])
    beside = Path(main.__file__).parent
    assert find_agent("champion") == beside / "checkpoints/champion.safetensors"
    assert find_config("pendulum") == find_config("pendulum.yml") == beside / "configs/pendulum.yml"
    with pytest.raises(UserError, match="'chmpion'.*checkpoints/ has champion"):
        find_agent("chmpion")
    for path in (Path("checkpoints/champion.safetensors"), Path("configs/pendulum.yml")):
        path.parent.mkdir()
        path.touch()
        assert path in (find_agent("champion"), find_config("pendulum"))
    Path("my_world.py").write_text(
        "from gymnasium.envs.classic_control import PendulumEnv\nclass World(PendulumEnv): pass"
    )
    config = make_config("cartpole.yml", environment="my_world:World")
    make_environments(config, 1).close()


def test_players_are_bots_or_files(saved):
    assert [find_player(bot) for bot in ("weak", "strong", "random")] == [
        "weak",
        "strong",
        "random",
    ]
    assert find_player(saved("mine")) == saved("mine")
    assert called("weak") == "weak" and called(saved("mine")) == "mine"
    assert called(Path("checkpoints/run/best.safetensors")) == "run"
    assert called("best.safetensors") == Path.cwd().name
