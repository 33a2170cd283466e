"""The command line of measuring."""

import re

import pytest
import torch
from conftest import make_config

import hockey_env
from dreamer import Dreamer
from evaluate import main


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The path of a saved agent."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "latest.safetensors"
    Dreamer(make_config(hockey__frame_skip=16), 18, 4).save(path)
    return path


def test_the_command_line_prints_one_line_per_opponent(saved, monkeypatch, capsys):
    monkeypatch.setitem(hockey_env.MAX_TIMESTEPS, 0, 100)
    command = ["--against", "weak", "random", str(saved), "--games", "4", "--seed", "3"]
    assert main([str(saved), *command]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split(":")[0].strip() for line in lines]
    assert names == ["weak", "random", saved.parent.name]
    assert all(re.search(r"4 games, \d won, \d drawn, \d lost", line) for line in lines)
    assert main([str(saved.parent), *command]) == 0  # the folder of the run will do
    assert capsys.readouterr().out.splitlines() == lines
    assert main([str(saved), "--plan", "--against", "weak", "--games", "4"]) == 0
    assert "weak: 4 games" in capsys.readouterr().out


def test_a_config_of_the_users_changes_no_match(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hockey.yml").write_text("base: pendulum.yml")
    assert main(["weak", "--against", "random", "--games", "2"]) == 0
    assert "random: 2 games" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["missing.safetensors"], "missing.safetensors"),
        (["{saved}", "--against", "nobody"], "nobody"),
        (["{saved}", "--against", "gone.safetensors"], "gone.safetensors"),
        (["{saved}", "--games", "0"], "--games"),
        (["{saved}", "--seed", "-1"], "--seed"),
        (["."], "."),
        ([300 * "x"], "too long"),
        (["{pendulum}"], "pendulum"),
        (["{saved}", "--out", "wins.svg"], "--out"),
        (["--league", "weak", "strong", "--against", "random"], "--against"),
        (["--compare", "a.csv", "--games", "3"], "--games"),
    ],
)
def test_the_command_line_refuses_in_one_sentence(saved, tmp_path, capsys, arguments, word):
    other = tmp_path / "pendulum.safetensors"
    Dreamer(make_config(), 3, 1).save(other)
    arguments = [text.format(saved=saved, pendulum=other) for text in arguments]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert word in captured.err and captured.err.count("\n") == 1 and not captured.out


@pytest.mark.parametrize("arguments", [[], ["x", "--games", "many"], ["x", "--nonsense"]])
def test_wrong_arguments_leave_with_status_2(arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
