"""The game as one player sees it: rows, sides, ends, rewards, shaping, symmetry."""

import gymnasium
import numpy as np
import pytest
from conftest import make_config
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import hockey_env
from benchmarks.model_free import HockeyWrapper
from environments import make_environments
from hockey_wrapper import MIRROR, HockeyGames, load_game
from opponents import PerGame, load
from utils import UserError


class Still:
    """A player that does nothing."""

    def act(self, observation):
        return np.zeros(4)


def make_games(count=4, opponent="strong", training=True, **hockey):
    """Games with keys of `hockey` replaced, against an opponent's name or a plain player."""
    config = make_config(**{f"hockey__{key}": value for key, value in hockey.items()})
    players = load(opponent, count, seed=1) if isinstance(opponent, str) else opponent
    if isinstance(players, Still):
        players = PerGame([players] * count)
    return HockeyGames(config.hockey, count, lambda: players, training)


def random_actions(count, steps, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (steps, count, 4)).astype(np.float32)


def play(games, steps, seed=0, action_seed=0):
    """A list of dicts, one per row, the start included."""
    observation, info = games.reset(seed=seed)
    nothing = np.zeros(games.num_envs)
    rows = [{"o": observation, "r": nothing, "end": nothing > 0, "late": nothing > 0, "info": info}]
    rows[0] |= {"side": games.side.copy(), "we_start": games.we_start.copy(), "a": None}
    for action in random_actions(games.num_envs, steps, action_seed):
        observation, reward, terminated, truncated, info = games.step(action)
        row = {"o": observation, "r": reward, "end": terminated, "late": truncated, "info": info}
        row |= {"side": games.side.copy(), "we_start": games.we_start.copy(), "a": action}
        rows.append(row)
    return rows


# ---------------------------------------------------------------------------- interface


def test_the_vector_interface():
    games = make_games(3)
    assert isinstance(games, gymnasium.vector.VectorEnv)
    assert games.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert make_games(training=False).metadata["autoreset_mode"] == AutoresetMode.DISABLED
    assert games.single_observation_space.shape == (18,) and games.action_space.shape == (3, 4)
    observation, info = games.reset(seed=0)
    assert games.observation_space.contains(observation)
    observation, reward, terminated, truncated, info = games.step(games.action_space.sample())
    assert games.observation_space.contains(observation)
    assert reward.shape == terminated.shape == truncated.shape == (3,)
    assert terminated.dtype == truncated.dtype == bool and reward.dtype == np.float32
    assert info["opponent"] == ["strong"] * 3
    assert info["opponent_observation"].shape == (3, 18)
    assert info["opponent_action"].shape == (3, 4)
    terminated[:] = True  # what was returned is the caller's own
    observation[:] = 9
    assert not games.terminated.any() and abs(games.views).max() < 9


@pytest.mark.parametrize(
    "actions", [np.zeros(4), np.zeros((3, 4)), np.zeros((2, 8)), [[0, 0, 0, np.nan]] * 2, 0.0]
)
def test_wrong_actions_are_refused(actions):
    games = make_games(2)
    games.reset(seed=0)
    with pytest.raises(ValueError, match="actions must be"):
        games.step(actions)


class Bad:
    name = "rotten"

    def __init__(self, action):
        self.action = action

    def reset(self, games):
        pass

    def act(self, observations, games):
        if isinstance(self.action, Exception):
            raise self.action
        return self.action


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (RuntimeError("out of\nluck"), "RuntimeError: out of luck"),
        (np.full((2, 4), np.nan), "nan"),
        (np.full((2, 4), np.inf), "inf"),
        (np.full((2, 4), 1.5), r"1.5; actions are within \[-1, 1\]"),
        (np.zeros((2, 3)), r"\(2, 3\), not \(2, 4\)"),
        (np.zeros(4), r"\(4,\)"),
        ([[0, 0, 0, 0], [0]], "failed"),
        (None, "actions"),
        ("left", "failed"),
    ],
)
def test_a_bad_opponent_is_named(action, reason):
    bad = Bad(action)
    games = HockeyGames(make_config().hockey, 2, lambda: bad)
    games.reset(seed=0)
    with pytest.raises(UserError, match=f"'rotten'.*{reason}"):
        games.step(np.zeros((2, 4)))


@pytest.mark.filterwarnings("ignore:.*(Box|-inf|infinity|render|spec).*")
def test_the_single_game_is_a_gymnasium_environment():
    env = HockeyWrapper(make_config().hockey, hockey_env.BasicOpponent(weak=False, seed=1))
    check_env(env, skip_render_check=True)
    observation, info = env.reset(seed=3)
    assert observation.shape == (18,) and info == {"winner": 0}
    for _ in range(200):
        observation, reward, terminated, truncated, info = env.step(np.zeros(4, np.float32))
        assert type(reward) is float and type(terminated) is type(truncated) is bool
        if terminated or truncated:
            break
    assert (terminated and info["winner"] in (-1, 1)) or (truncated and info["winner"] == 0)
    with pytest.raises(ValueError):
        env.step(np.zeros(3))


def test_the_package_is_asked_for_in_one_sentence(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr("hockey_wrapper.importlib.import_module", missing)
    with pytest.raises(UserError, match="pip install"):
        load_game("hockey-env")
    assert load_game("built-in") is hockey_env


@pytest.mark.filterwarnings("ignore:.*precision lowered")
def test_other_environments_look_the_same():
    config = make_config("pendulum.yml", environment="Pendulum-v1")
    games = make_environments(config, 3)
    assert games.single_observation_space.shape == (3,) and games.num_envs == 3
    assert games.single_action_space.low == -1 and games.single_action_space.high == 1
    one, two = [], []
    for found in (one, two):
        games = make_environments(config, 3)
        found.append(games.reset(seed=5)[0])
        for _ in range(201):  # the 200th ends the episode, the next one starts another
            found.append(games.step(np.full((3, 1), 0.3, np.float32))[0])
    assert all(map(np.array_equal, one, two)) and not np.allclose(one[-1], one[-2], atol=1e-2)


def test_one_seed_reproduces_and_another_differs():
    def observations(seed):
        return np.stack([row["o"] for row in play(make_games(), 30, seed)])

    assert np.array_equal(observations(1), observations(1))
    assert not np.array_equal(observations(1), observations(2))
    games = make_games(opponent=Still())
    first = [play(games, 140, seed=5)[-1]["o"] for _ in range(2)]
    assert np.array_equal(*first)  # also of an object that was used before


# ---------------------------------------------------------------------------- rows


def test_the_row_after_the_end_only_starts_the_next_game():
    games = make_games(8, reward="env", frame_skip=5)
    rows = play(games, 160)
    starts = 0
    for before, after in zip(rows, rows[1:], strict=False):
        done = before["end"] | before["late"]
        starts += done.sum()
        assert not after["r"][done].any() and not after["end"][done].any()
        assert not after["late"][done].any() and not after["info"]["winner"][done].any()
        assert not after["info"]["opponent_reward"][done].any()
        assert not after["info"]["opponent_action"][done].any()
        start = after["o"][done]
        assert np.allclose(start[:, [0, 6]], [-3, 3], atol=1e-5)  # rackets where games begin
        assert not start[:, [1, 3, 4, 5, 7, 9, 10, 11, 14, 15, 16, 17]].any()
        assert np.array_equal(after["side"][~done], before["side"][~done])
        assert np.array_equal(start[:, 12] < 0, after["we_start"][done])
    assert starts >= 16


def test_only_a_goal_terminates():
    games = make_games(8, opponent="strong", reward="sparse", frame_skip=5)
    rows = play(games, 160)
    assert sum(row["end"].sum() for row in rows) > 3
    for row in rows:
        assert not (row["end"] & row["late"]).any()
        assert np.array_equal(row["end"], row["info"]["winner"] != 0)
        assert np.allclose(row["r"], 10 * row["info"]["winner"])
        assert np.allclose(row["info"]["opponent_reward"], -row["r"])


def test_without_a_goal_the_game_is_truncated_after_251_frames():
    for frame_skip, decisions in ((1, 251), (2, 126), (4, 63), (50, 6)):
        games = make_games(1, Still(), frame_skip=frame_skip)
        games.reset(seed=0)
        count, truncated = 0, np.array([False])
        while not truncated.any():
            _, _, terminated, truncated, _ = games.step(np.zeros((1, 4)))
            count += 1
            assert not terminated.any()
        assert count == decisions


def test_ended_games_rest_in_evaluation():
    games = make_games(4, training=False, frame_skip=10)
    rows = play(games, 40)
    ended = rows[-1]["end"] | rows[-1]["late"]
    assert ended.all()
    assert sum(row["r"].sum() for row in rows) == 10 * rows[-1]["info"]["winner"].sum()
    assert not rows[-1]["r"].any()


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_sides_and_starts_are_balanced(count):
    games = make_games(count, Still(), frame_skip=50)
    pairs = []
    for number in range(4):
        games.reset(seed=3 if number == 0 else None)
        pairs += [(int(s), bool(w)) for s, w in zip(games.side, games.we_start, strict=True)]
        puck_is_ours = games.views[0, :, 12] < 0
        assert np.array_equal(puck_is_ours, games.we_start)
    for side in (0, 1):
        for start in (False, True):
            assert pairs.count((side, start)) == count


# ---------------------------------------------------------------------------- rewards


def test_the_closeness_penalty_has_its_weight():
    rewards = []
    for closeness in (0, 0.5, 1):
        games = make_games(4, reward="env", closeness=closeness)
        rewards.append(np.array([row["r"] for row in play(games, 150)]))
    nothing, half, whole = rewards
    assert set(np.unique(nothing)) <= {-10, 0, 10} and (whole - nothing).min() < -0.1
    assert np.allclose(half, (nothing + whole) / 2, atol=1e-5)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("frame_skip", [1, 3])
def test_env_reward_is_the_labs_summed_over_the_frames(monkeypatch, side, frame_skip):
    starts, reset = [], hockey_env.HockeyEnv.reset

    def watched(env, **options):
        starts.append(options)
        return reset(env, **options)

    raw, games = hockey_env.HockeyEnv(), make_games(2, Still(), frame_skip=frame_skip)
    monkeypatch.setattr(hockey_env.HockeyEnv, "reset", watched)
    games.reset(seed=11)
    assert games.side[side] == side
    raw.reset(**[options for options in starts if options.get("seed") is not None][side])
    nonzero = 0
    for action in random_actions(2, 80):
        observation, reward, terminated, truncated, info = games.step(action)
        total, theirs = 0.0, 0.0
        for _ in range(frame_skip):
            pair = [action[side], np.zeros(4)]
            seen, _, done, late, raw_info = raw.step(np.concatenate(pair[:: 1 - 2 * side]))
            both = [raw.get_reward(raw_info)]
            both.append(raw.get_reward_agent_two(raw.get_info_agent_two()))
            total, theirs = total + both[side], theirs + both[1 - side]
            if done or late:
                break
        assert reward[side] == pytest.approx(total, abs=1e-4)
        assert info["opponent_reward"][side] == pytest.approx(theirs, abs=1e-4)
        views = [seen, raw.obs_agent_two()]
        assert np.array_equal(observation[side], views[side])
        assert np.array_equal(info["opponent_observation"][side], views[1 - side])
        nonzero += total != 0
        if done or late:
            assert (terminated | truncated)[side]
            break
    assert nonzero > 5


def test_evaluation_is_never_shaped():
    games = make_games(4, Still(), training=False, reward="env", modes__shooting=1.0)
    rows = play(games, 20)
    assert not any(row["r"].any() for row in rows if not row["end"].any())


# ---------------------------------------------------------------------------- modes


def test_modes_come_up_by_their_shares():
    config = make_config(
        hockey__modes__normal=0.5,
        hockey__modes__shooting=0.3,
        hockey__modes__defense=0.2,
    )
    players = PerGame([Still()] * 40)
    games = HockeyGames(config.hockey, 40, lambda: players)
    counts = dict.fromkeys(hockey_env.Mode, 0)
    for number in range(15):
        games.reset(seed=number)
        for env in games.current:
            counts[env.mode] += 1
    for mode, share in zip(hockey_env.Mode, (0.5, 0.3, 0.2), strict=True):
        assert abs(counts[mode] - 600 * share) < 5 * (600 * share * (1 - share)) ** 0.5
    evaluation = HockeyGames(config.hockey, 40, lambda: players, training=False)
    evaluation.reset(seed=0)
    assert {env.mode for env in evaluation.current} == {hockey_env.Mode.NORMAL}


def test_modes_without_any_share_are_refused():
    config = make_config(hockey__modes__normal=0.0)
    with pytest.raises(UserError, match="hockey.modes"):
        HockeyGames(config.hockey, 1, PerGame([Still()]))


# ---------------------------------------------------------------------------- symmetry


def test_the_mirrored_game_is_the_game_mirrored():
    seen, done = np.array(MIRROR[:18]), np.array(MIRROR[18:] * 2)
    generator = np.random.default_rng(0)
    for _ in range(10):
        start = np.zeros(18)
        start[[0, 6]] = generator.uniform([-3.4, 1.0], [-1.0, 3.4])
        start[[1, 7, 12, 13]] = generator.uniform(-1.5, 1.5, 4)
        start[[2, 8]] = generator.uniform(-0.8, 0.8, 2)
        start[[3, 4, 9, 10, 14, 15]] = generator.uniform(-3, 3, 6)
        envs = hockey_env.HockeyEnv(), hockey_env.HockeyEnv()
        for env, state in zip(envs, (start, start * seen), strict=True):
            env.reset(seed=0)
            env.set_state(state)
        for _ in range(6):
            action = generator.uniform(-1, 1, 8)
            left, right = envs[0].step(action)[0], envs[1].step(action * done)[0]
            assert np.allclose(left * seen, right, atol=1e-3)
            left, right = (env.obs_agent_two() for env in envs)
            assert np.allclose(left * seen, right, atol=1e-3)


def test_the_opponents_row_is_ours_with_the_sides_swapped():
    """The same game, once with our actions on side one, once on side two."""

    class Scripted:
        def __init__(self, actions):
            self.actions = iter(actions)

        def act(self, observation):
            return next(self.actions)

    ours, theirs = random_actions(1, 40, 1)[:, 0], random_actions(1, 40, 2)[:, 0]
    rows = []
    for mine, other, start in ((ours, theirs, 0), (theirs, ours, 3)):
        games = make_games(1, PerGame([Scripted(other)]), reward="env", frame_skip=1)
        games.reset(seed=4)
        games.games_started[:] = start  # 0: side one, we start; 3: side two, they start
        games.reset()  # the puck lies on side one's half in both
        rows.append([games.step(action[None]) for action in mine])
    for left, right in zip(*rows, strict=True):
        assert np.array_equal(left[0], right[4]["opponent_observation"])
        assert np.array_equal(left[4]["opponent_observation"], right[0])
        assert np.allclose(left[1], right[4]["opponent_reward"])
        assert np.allclose(left[4]["opponent_reward"], right[1])
        assert np.array_equal(left[4]["winner"], -right[4]["winner"])
