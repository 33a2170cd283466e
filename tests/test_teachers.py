"""Learning from other agents by imitation."""

import numpy as np
import pytest
import torch
from conftest import make_batch
from tiny import numbers, run

from dreamer import Dreamer
from hockey_wrapper import HockeyGames
from opponents import load
from teachers import CONTEXT, Teachers
from utils import UserError

LONG = CONTEXT + 4


def save_teacher(small_config, path, seed=0, **overrides):
    """A teacher whose actions are not all near 0."""
    torch.manual_seed(seed)
    teacher = Dreamer(small_config(**overrides), 18, 4)
    with torch.no_grad():
        for parameter in teacher.slow_actor.parameters():
            parameter.mul_(8)
    teacher.save(path)
    return Dreamer.load(path)


def student_of(small_config, *names, **overrides):
    keys = {"dreamer__critic_imagination": 0, "dreamer__critic_replay": 1}
    keys |= {"replay__batch_length": LONG}
    student = Dreamer(small_config(**keys | overrides), 18, 4)
    student.teachers = Teachers(names, student)
    return student


def played_batch(small_config, teacher):
    """What the teacher saw and did in games, as a batch (B, T, ...), and its means (B, T, A)."""
    opponent = load("weak", 4)
    games = HockeyGames(small_config().hockey, 4, lambda: opponent, training=False)
    observation, _ = games.reset(seed=0)
    action, rows, means = np.zeros((4, 4), np.float32), [], []
    batch = make_batch(4, LONG)
    batch["is_first"] = torch.zeros(4, LONG)
    for time in range(LONG):
        rows.append((observation, action))
        if time == 5:  # as if game 1 began here
            batch["is_first"][1, time] = 1
            teacher.reset([1])
        action = teacher.act(observation, deterministic=True)
        means.append(action)
        observation, *_ = games.step(action)
    names = zip(("observation", "action"), zip(*rows, strict=True), strict=True)
    batch |= {name: torch.from_numpy(np.stack(part, 1)) for name, part in names}
    return batch, torch.from_numpy(np.stack(means, 1))


def test_what_a_teacher_would_do_is_what_it_does(small_config, tmp_path):
    teacher = save_teacher(small_config, tmp_path / "one.safetensors")
    student = student_of(small_config, tmp_path / "one.safetensors")
    batch, means = played_batch(small_config, teacher)
    action, _ = student.teachers.policy(batch)
    torch.testing.assert_close(action, means, atol=1e-4, rtol=1e-3)
    assert means.abs().mean() > 0.05


def test_two_teachers_are_the_mean_of_both(small_config, tmp_path):
    paths = [tmp_path / f"{seed}.safetensors" for seed in (1, 2)]
    for seed, path in enumerate(paths):
        save_teacher(small_config, path, seed)
    batch = make_batch(4, LONG)
    one, two, both = (
        student_of(small_config, *names).teachers.policy(batch)
        for names in (paths[:1], paths[1:], paths)
    )
    for alone, other, mean in zip(one, two, both, strict=True):
        torch.testing.assert_close((alone + other) / 2, mean)
    assert (one[0] - two[0]).abs().mean() > 0.05


def test_the_actor_comes_to_act_as_its_teacher(small_config, tmp_path):
    save_teacher(small_config, tmp_path / "one.safetensors")
    student = student_of(small_config, tmp_path / "one.safetensors", dreamer__actor_rate=0.003)
    errors = []
    for _ in range(150):
        with student.update(make_batch(8, LONG)) as metrics:
            pass
        errors.append(metrics.get("behavior/imitation_error"))
    assert errors[-1] < 0.2 * errors[1]
    assert "behavior/critic_loss" in metrics and "behavior/return" not in metrics


def test_rows_whose_past_a_teacher_does_not_know_teach_nothing(small_config, tmp_path):
    save_teacher(small_config, tmp_path / "one.safetensors")
    student = student_of(small_config, tmp_path / "one.safetensors")
    batch = make_batch(3, LONG)
    batch["is_first"] = torch.zeros(3, LONG)
    batch["is_first"][0, 2] = 1
    batch["is_own"][2] = 0  # nor do the opponent's
    h = torch.zeros(3, LONG, student.rssm.sizes[0], requires_grad=True)
    z, o = (torch.zeros(3, LONG, size) for size in student.rssm.sizes[1:])
    student.teachers.loss((h, z, o), batch)[0].backward()
    learned = h.grad.abs().sum(-1) > 0
    assert learned.tolist() == [[t >= start for t in range(LONG)] for start in (2, CONTEXT, LONG)]


def test_a_run_learns_from_teachers_and_its_resume_as_well(small_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_teacher(small_config, tmp_path / "one.safetensors")
    keys = {"teachers": f"[{tmp_path}/one.safetensors]", "replay__batch_length": LONG}
    events, whole = run(**keys), numbers()
    assert "behavior/imitation_error" in whole[0] and "behavior/entropy" not in whole[0]
    run(overwrite=True, crash_after=events * 3 // 4, **keys)
    run(resume=True, **keys)
    assert numbers() == whole


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"dreamer__critic_imagination": 1}, "critic_imagination=0"),
        ({"replay__batch_length": CONTEXT}, f"batch_length above {CONTEXT}"),
    ],
)
def test_what_a_student_needs_is_said(small_config, tmp_path, keys, message):
    save_teacher(small_config, tmp_path / "one.safetensors")
    with pytest.raises(UserError, match=message):
        student_of(small_config, tmp_path / "one.safetensors", **keys)


def test_a_teacher_of_another_world_is_refused(small_config, tmp_path):
    Dreamer(small_config(), 3, 1).save(tmp_path / "one.safetensors")
    with pytest.raises(UserError, match=r"one.safetensors was .*\('hockey', 3, 1\), not .*18, 4"):
        student_of(small_config, tmp_path / "one.safetensors")
    Dreamer(small_config(environment="Other-v0"), 18, 4).save(tmp_path / "one.safetensors")
    with pytest.raises(UserError, match=r"\('Other-v0', 18, 4\), not \('hockey', 18, 4\)"):
        student_of(small_config, tmp_path / "one.safetensors")
    with pytest.raises(UserError, match="no agent 'nobody'"):
        student_of(small_config, "nobody")


def test_choices_are_not_taught(small_config, tmp_path):
    student = Dreamer(small_config(), 4, 2, discrete=True)
    student.save(tmp_path / "one.safetensors")
    with pytest.raises(UserError, match="numbers, not choices"):
        Teachers([tmp_path / "one.safetensors"], student)
