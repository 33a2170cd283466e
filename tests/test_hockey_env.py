"""Tests of the game against recorded games of the lab's package, and of its own promises.

`data/reference.npz` holds 36 games of the lab's package, played with fixed actions:
rows `start[i]:start[i + 1]` are game i, the first of them its reset.
"""

import gc
import os
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pygame
import pytest
from gymnasium.utils.env_checker import check_env

import hockey_env
from hockey_env import BasicOpponent, HockeyEnv, HockeyEnv_BasicOpponent, Mode

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = dict(np.load(Path(__file__).parent / "data" / "reference.npz"))
INFO_KEYS = (
    "winner",
    "reward_closeness_to_puck",
    "reward_touch_puck",
    "reward_puck_direction",
)
MIRROR_OBSERVATION = np.array([1, -1, -1, 1, -1, -1] * 2 + [1, -1, 1, -1, 1, 1], np.float32)
MIRROR_ACTION = np.array([1, -1, -1, 1] * 2, np.float32)


@pytest.fixture(scope="module")
def shared_env():
    """One object for all games with keep mode: so a reset must leave nothing behind."""
    return HockeyEnv()


def random_actions(count, seed=0, size=8):
    """Actions that last for some steps each, so that the rackets come around."""
    generator = np.random.default_rng(seed)
    return np.repeat(generator.uniform(-1.2, 1.2, (count // 5 + 1, size)), 5, 0)[:count]


def play(env, actions):
    """Plays until the actions or the game end; returns the observations of both, (n, 2, 18)."""
    views = []
    for action in actions:
        observation, _, terminated, truncated, _ = env.step(action)
        views.append((observation, env.obs_agent_two()))
        if terminated or truncated:
            break
    return np.array(views)


@pytest.mark.parametrize("game", range(36))
def test_recorded_game(game, shared_env):
    mode, keep_mode, seed, one_starts = REFERENCE["meta"][game].tolist()
    env = shared_env if keep_mode else HockeyEnv(keep_mode=False)
    numbers, actions = (18, 8) if keep_mode else (16, 6)
    rows = range(*REFERENCE["start"][game : game + 2])
    for row in rows:
        if row == rows[0]:
            observation, info = env.reset(seed=seed, one_starting=bool(one_starts), mode=mode)
            reward, is_over = 0.0, False
        else:
            action = REFERENCE["actions"][row, :actions]
            observation, reward, terminated, truncated, info = env.step(action)
            is_over = terminated or truncated
            assert terminated == (REFERENCE["info_one"][row, 0] != 0)
        info_two = env.get_info_agent_two()
        for mine, recorded in (
            (observation, REFERENCE["obs_one"][row, :numbers]),
            (env.obs_agent_two(), REFERENCE["obs_two"][row, :numbers]),
            ([info[key] for key in INFO_KEYS], REFERENCE["info_one"][row]),
            ([info_two[key] for key in INFO_KEYS], REFERENCE["info_two"][row]),
        ):
            np.testing.assert_allclose(mine, recorded, rtol=0, atol=1e-6)
        if row > rows[0]:
            rewards = (reward, env.get_reward_agent_two(info_two))
            np.testing.assert_allclose(rewards, REFERENCE["rewards"][row], rtol=0, atol=1e-6)
        assert is_over == REFERENCE["done"][row]
    assert is_over


def test_recorded_games_hold_goals_timeouts_and_catches():
    lasts = REFERENCE["start"][1:] - 1
    assert set(REFERENCE["info_one"][lasts, 0]) == {-1, 0, 1}
    assert REFERENCE["obs_one"][:, 16:].max() == 15


def test_scripted_opponent_plays_the_recorded_actions():
    class Recorded:
        def __init__(self, increment):
            self.increment = increment

        def random(self):
            return self.increment / 0.2

    for weak, keep_mode, phase, increment, *rest in REFERENCE["opponent"].tolist():
        opponent = BasicOpponent(weak=bool(weak), keep_mode=bool(keep_mode), seed=0)
        opponent.phase, opponent.generator = phase, Recorded(increment)
        action = opponent.act(np.array(rest[: 18 if keep_mode else 16]))
        assert action.shape == (4 if keep_mode else 3,)
        np.testing.assert_allclose(action, rest[18 : 18 + len(action)], rtol=0, atol=1e-6)


def test_scripted_opponent_is_seedable():
    view = HockeyEnv().obs_agent_two()
    one, same, other = (BasicOpponent(seed=seed) for seed in (3, 3, 4))
    plays = [[player.act(view)[2] for _ in range(20)] for player in (one, same, other)]
    assert plays[0] == plays[1] != plays[2]


@pytest.mark.parametrize(
    "env_class, settings",
    [
        (HockeyEnv, {}),
        (HockeyEnv, {"keep_mode": False, "mode": "TRAIN_SHOOTING"}),
        (HockeyEnv_BasicOpponent, {"mode": Mode.TRAIN_DEFENSE}),
        (HockeyEnv_BasicOpponent, {"keep_mode": False, "weak_opponent": True}),
    ],
)
def test_gymnasium_checker_passes(env_class, settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # infinite bounds are only advised against
        check_env(env_class(**settings), skip_render_check=True)


@pytest.mark.parametrize("name, actions", [("Hockey-v0", 8), ("Hockey-One-v0", 4)])
def test_registered_names_and_videos(name, actions, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = gymnasium.make(name, render_mode="rgb_array", mode="TRAIN_SHOOTING")
    assert env.action_space.shape == (actions,)
    assert env.unwrapped.mode is Mode.TRAIN_SHOOTING
    env = gymnasium.wrappers.RenderCollection(env)  # what RecordVideo needs, without an encoder
    env.reset(seed=0, options={"mode": "NORMAL", "one_starting": True})
    assert env.unwrapped.mode is Mode.NORMAL and env.unwrapped.puck.position.x < 5
    for _ in range(3):
        env.step(env.action_space.sample())
    frames = env.render()
    assert len(frames) == 4 and frames[0].shape == (480, 600, 3)
    assert env.metadata["render_fps"] == 50


@pytest.mark.parametrize("env_class", [HockeyEnv, HockeyEnv_BasicOpponent])
def test_one_seed_reproduces_a_whole_run(env_class):
    def run(env, seed):
        views = [env.reset(seed=seed)[0]]
        for start in range(3):  # the later resets go on with the seeded generator
            actions = random_actions(40, start, env.action_space.shape[0])
            views += [view[0] for view in play(env, actions)] + [env.reset()[0]]
        return np.array(views)

    env = env_class()
    first, again, other = run(env, 7), run(env, 7), run(env_class(), 8)
    assert np.array_equal(first, again)
    assert np.array_equal(first, run(env_class(), 7))
    assert len(first) != len(other) or not np.allclose(first, other)


def test_starts_alternate_and_differ():
    env = HockeyEnv()
    starts = [env.reset(seed=1)[0]] + [env.reset()[0] for _ in range(5)]
    assert [bool(view[12] < 0) for view in starts] == [False, True] * 3
    assert len({float(view[12]) for view in starts}) == 6
    assert HockeyEnv().reset()[0][12] > 0
    assert env.reset(one_starting=True)[0][12] < 0 and env.reset(one_starting=False)[0][12] > 0


@pytest.mark.parametrize("mode, limit", [("NORMAL", 250), ("TRAIN_SHOOTING", 80)])
def test_timeout_is_a_truncation(mode, limit):
    env = HockeyEnv(mode=mode)
    env.reset(seed=0)
    for step in range(limit + 1):
        assert not env.done
        _, reward, terminated, truncated, info = env.step(np.zeros(8))
        assert not terminated and truncated == (step == limit)
    assert env.done and env.winner == info["winner"] == 0 and abs(reward) < 1
    assert env.time == limit + 1 and env.max_timesteps == limit


@pytest.mark.parametrize("winner", [1, -1])
def test_goal_is_a_termination(winner):
    env = HockeyEnv()
    state, _ = env.reset(seed=0)
    state[12:16] = winner * 3, 0, winner * 24, 0
    state[[0, 6, 1, 7]] = -2, 2, 2, 2  # rackets out of the way
    env.set_state(state)
    for _ in range(10):
        _, reward, terminated, truncated, info = env.step(np.zeros(8))
        if terminated:
            break
    assert terminated and not truncated and env.done
    assert env.winner == info["winner"] == winner and abs(reward - 10 * winner) < 1
    info_two = env.get_info_agent_two()
    assert info_two["winner"] == -winner
    assert abs(env.get_reward_agent_two(info_two) + 10 * winner) < 1


def test_reset_changes_mode_for_good_and_clears_counters():
    env = HockeyEnv()
    for mode, member in ((Mode.TRAIN_DEFENSE, 2), ("TRAIN_SHOOTING", 1), (0, 0)):
        env.player1_has_puck = env.player2_has_puck = 9
        observation, _ = env.reset(mode=mode)
        assert env.mode is Mode(member) and env.max_timesteps == (250, 80, 80)[member]
        assert env.player1_has_puck == env.player2_has_puck == observation[16] == 0
        env.reset()
        assert env.mode is Mode(member)


def test_modes_start_as_they_should():
    env = HockeyEnv()
    for seed in range(30):
        shooting = env.reset(mode="TRAIN_SHOOTING", seed=seed)[0]
        assert -2 <= shooting[12] <= -1 and abs(shooting[13]) <= 1
        assert -1 / 3 <= shooting[6] <= 3 + 10 / 6 + 1e-6 and abs(shooting[7]) <= 2
        assert 0 <= env.reset(mode="TRAIN_DEFENSE", seed=seed)[0][12] <= 10 / 3
        assert env.step(np.zeros(8))[0][14] < -30


def test_without_keep_mode():
    env = HockeyEnv(keep_mode=False)
    assert env.action_space.shape == (6,) and env.observation_space.shape == (16,)
    assert env.reset(seed=0)[0].shape == env.obs_agent_two().shape == (16,)
    assert env.step(np.ones(6))[0].shape == (16,)
    assert env.discrete_to_continous_action(6).tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match=r"shape \(8,\).*must have shape \(6,\)"):
        env.step(np.zeros(8))


def test_holding_and_shooting():
    env = HockeyEnv()
    state, _ = env.reset(seed=0)
    state[12:16] = state[0] + 0.6, 0, -5, 0
    env.set_state(state)
    counters, touches = [], []
    for _ in range(25):
        observation, *_, info = env.step(np.zeros(8))
        counters.append(int(observation[16]))
        touches.append(info["reward_touch_puck"])
        assert env.obs_agent_two()[17] == counters[-1] == env.player1_has_puck
    caught = counters.index(15)
    assert counters[caught : caught + 15] == [*range(15, 1, -1), 0]
    assert sum(touches) == 1 and touches[caught] == 1
    assert env.puck.linearVelocity.x > 20
    env.set_state(state)
    while env.player1_has_puck != 15:
        env.step(np.zeros(8))
    env.step([0, 0, 0, 1, 0, 0, 0, 0])
    assert env.player1_has_puck == 0 and env.puck.linearVelocity.x > 20


def test_discrete_actions():
    env = HockeyEnv()
    expected = np.zeros((8, 4))
    expected[range(1, 8), [0, 0, 1, 1, 2, 2, 3]] = [-1, 1, -1, 1, -1, 1, 1]
    assert np.array_equal([env.discrete_to_continous_action(k) for k in range(8)], expected)


def test_names_that_users_of_the_labs_package_rely_on():
    env = hockey_env.HockeyEnv(mode=hockey_env.Mode.NORMAL, keep_mode=True, verbose=False)
    observation, info = env.reset(one_starting=True)
    assert hockey_env.FPS == 50 and hockey_env.SCALE == 60.0
    assert (hockey_env.VIEWPORT_W, hockey_env.VIEWPORT_H) == (600, 480)
    assert (hockey_env.W, hockey_env.H) == (10, 8)
    assert (hockey_env.CENTER_X, hockey_env.CENTER_Y) == (5, 4)
    player1, player2 = hockey_env.BasicOpponent(weak=False), hockey_env.BasicOpponent()
    actions = np.hstack([player1.act(observation), player2.act(env.obs_agent_two())])
    observation, reward, done, truncated, info = env.step(actions)
    assert observation.dtype == np.float32 and type(reward) is float and tuple(info) == INFO_KEYS
    assert type(done) is type(truncated) is type(info["winner"] == 1) is bool
    assert env.player1.mass == pytest.approx(58.0, abs=0.01)
    assert env.puck.mass == pytest.approx(1.0324, abs=1e-4)
    position = env.player2.position - (hockey_env.CENTER_X, hockey_env.CENTER_Y)
    np.testing.assert_allclose(position, observation[6:8], atol=1e-6)
    assert (env.time, env.done, env.winner) == (1, False, 0)
    one = hockey_env.HockeyEnv_BasicOpponent(mode=0, weak_opponent=True)
    assert one.opponent.weak and one.action_space.shape == (4,)
    assert one.reset()[0].shape == one.step(np.zeros(4))[0].shape == (18,)
    one.close()


def test_one_player_game_is_the_two_player_game_with_the_script():
    one, both, script = HockeyEnv_BasicOpponent(), HockeyEnv(), BasicOpponent(False, seed=5)
    one.reset(seed=5)
    both.reset(seed=5)
    for action in random_actions(60, size=4):
        expected = both.step(np.hstack([action, script.act(both.obs_agent_two())]))
        observation, *rest = one.step(action)
        assert np.array_equal(observation, expected[0]) and tuple(rest) == expected[1:]


def test_set_state_round_trip():
    env, other = HockeyEnv(), HockeyEnv()
    env.reset(seed=2)
    state = play(env, random_actions(30))[-1, 0]
    state[16:] = 0, 4
    other.set_state(state)
    swapped = state[[*range(6, 12), *range(6), *range(12, 16), 17, 16]]
    swapped[[0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 14, 15]] *= -1
    np.testing.assert_allclose(other.obs_agent_two(), swapped, atol=1e-6)


def played_from(state, actions):
    """Plays the actions from a state; returns the observations of both, (n, 2, 18)."""
    env = HockeyEnv()
    env.set_state(state)
    return play(env, actions)


def calm_state():
    """A state from which nothing touches for some steps, so that rounding cannot grow."""
    return np.array([-2, 1, 0.2, 1, 0, 1, 2.5, -1, 0.1, 0, 2, 0, 0.5, 1, -3, 4, 0, 0], np.float32)


def test_game_is_the_same_for_both_players():
    state, actions = calm_state(), random_actions(20)
    env = HockeyEnv()
    env.set_state(state)
    views = played_from(state, actions)
    turned = played_from(env.obs_agent_two(), np.roll(actions, 4, axis=1))
    np.testing.assert_allclose(turned, views[:, ::-1], atol=1e-4)
    assert np.abs(views[-1] - views[0]).max() > 0.5


def test_game_is_the_same_upside_down():
    state, actions = calm_state(), random_actions(20)
    views = played_from(state, actions)
    mirrored = played_from(state * MIRROR_OBSERVATION, actions * MIRROR_ACTION)
    np.testing.assert_allclose(mirrored, views * MIRROR_OBSERVATION, atol=1e-4)


def test_old_object_plays_as_a_new_one():
    old = HockeyEnv()
    for seed in range(20):  # leaves the old world after different episodes
        old.reset(seed=seed, mode=seed % 3)
        play(old, random_actions(40, seed))
        new = HockeyEnv()
        starts = [env.reset(seed=99 + seed, mode=seed % 2)[0] for env in (old, new)]
        assert np.array_equal(*starts)
        actions = random_actions(60, 50 + seed)
        assert np.array_equal(play(old, actions), play(new, actions))
    del old, new
    gc.collect()


def test_picture_needs_no_screen():
    code = (
        "import hockey_env, pygame; env = hockey_env.HockeyEnv(render_mode='rgb_array');"
        "env.reset(); picture = env.render(); assert picture.shape == (480, 600, 3), picture.shape;"
        "assert not pygame.display.get_init()"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "SDL_VIDEODRIVER")}
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert ended.stdout == b""  # without pygame's greeting


def test_picture_shows_everything_in_its_place():
    env = HockeyEnv(render_mode="rgb_array")
    env.set_state([-2, 1, 0, 0, 0, 0, 2, -1, 0, 0, 0, 0, 1.2, 2, 0, 0, 0, 0])
    picture = env.render()
    assert picture.dtype == np.uint8 and picture.flags["C_CONTIGUOUS"]
    for x, y, colour in (
        (-2, 1, hockey_env.RED),
        (2, -1, hockey_env.BLUE),
        (1.2, 2, hockey_env.BLACK),
        (-4.25, 0, hockey_env.GREY),
        (4.25, 0, hockey_env.GREY),
        (-4.7, 0, hockey_env.ORANGE),
        (4.7, 0, hockey_env.ORANGE),
        (0, 3.5, hockey_env.BLACK),
        (-3, -2, hockey_env.WHITE),
        (0, 1, hockey_env.LIGHT_GREY),
    ):
        assert tuple(picture[240 - int(60 * y), 300 + int(60 * x)]) == colour, (x, y)


def test_the_window_opens_when_needed_and_closes(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = HockeyEnv(render_mode="human")
    assert not pygame.display.get_init()
    env.reset(seed=0)
    env.step(np.zeros(8))
    window = pygame.display.get_surface()
    assert window.get_size() == (600, 480)
    picture = pygame.surfarray.array3d(window).swapaxes(0, 1)
    assert np.array_equal(picture, env.render("rgb_array"))
    env.close()
    assert not pygame.display.get_init()


def test_bad_input_is_explained():
    env = HockeyEnv()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="'normal'.*NORMAL, TRAIN_SHOOTING, TRAIN_DEFENSE"):
        HockeyEnv(mode="normal")
    with pytest.raises(ValueError, match="mode is 7"):
        env.reset(mode=7)
    with pytest.raises(ValueError, match="'print', but must be None, human, rgb_array"):
        HockeyEnv(render_mode="print")
    with pytest.raises(ValueError, match="'print', but must be human or rgb_array"):
        env.render("print")
    with pytest.raises(ValueError, match=r"shape \(4,\), but must have shape \(8,\)"):
        env.step(np.zeros(4))
    with pytest.raises(ValueError, match="NaN"):
        env.step([0, 0, np.nan, 0, 0, 0, 0, 0])
    with pytest.raises(ValueError, match=r"shape \(8,\), but must have shape \(4,\)"):
        HockeyEnv_BasicOpponent().step(np.zeros(8))
    with pytest.raises(ValueError, match=r"must be \(18,\) finite numbers"):
        env.set_state(np.zeros(16))
    with pytest.raises(ValueError, match="finite"):
        env.set_state([np.nan] * 18)
    with pytest.raises(ValueError, match="must be 0 to 7"):
        env.discrete_to_continous_action(8)
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None
    assert env.time == 0 and np.isfinite(env.step([np.inf, -np.inf] * 4)[0]).all()


@pytest.mark.parametrize("keep_mode", [True, False])
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_plays_as_the_labs_package_does(mode, keep_mode):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lab = pytest.importorskip("hockey.hockey_env", exc_type=ImportError)
    for seed in range(4):
        ours = HockeyEnv(keep_mode=keep_mode, mode=mode)
        theirs = lab.HockeyEnv(keep_mode=keep_mode, mode=lab.Mode(mode))
        starts = [env.reset(seed=100 + seed)[0] for env in (ours, theirs)]
        np.testing.assert_allclose(*starts, rtol=0, atol=1e-6)
        for action in random_actions(260, seed, 8 if keep_mode else 6):
            view, reward, terminated, truncated, info = ours.step(action)
            their_view, their_reward, is_over, _, their_info = theirs.step(action)
            np.testing.assert_allclose(view, their_view, rtol=0, atol=1e-5)
            np.testing.assert_allclose(ours.obs_agent_two(), theirs.obs_agent_two(), atol=1e-5)
            assert reward == pytest.approx(their_reward, abs=1e-5)
            assert info == pytest.approx(their_info, abs=1e-5)
            assert (terminated or truncated) == is_over
            if is_over:
                break
