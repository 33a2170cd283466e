"""Configs: the rules of hockey.yml, bases, overrides, and what a user may get wrong."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

import config as config_module
from config import COMPLETE, CONFIGS, changes, convert, load_config, read_yaml, rule_of
from utils import UserError

RULES = {key: rule_of(text, comment) for key, (text, comment) in read_yaml(COMPLETE).items()}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def written(tmp_path, text, name="mine.yml"):
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def refusal(*arguments):
    """The one line with which `load_config` refuses."""
    with pytest.raises(UserError) as caught:
        load_config(*arguments)
    message = str(caught.value)
    assert "\n" not in message and message
    return message


def flat(config):
    """A config, or a part of it, as key -> value, with dots in the keys."""
    found = {}
    for key, value in config.items():
        is_group = isinstance(value, DictConfig)
        inside = {f"{key}.{name}": one for name, one in flat(value).items()} if is_group else {}
        found |= inside if is_group else {key: value}
    return found


# ---------------------------------------------------------------------------- presets


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yml")), ids=lambda path: path.name)
def test_every_config_that_is_shipped_loads(path):
    config = load_config(path.name)
    assert flat(config).keys() == RULES.keys()
    with pytest.raises(Exception, match="(?i)read-only"):
        config.seed = 3
    is_complete = path == COMPLETE
    name = "self-play" if path.stem == "champion" else path.stem  # the champion's files are shipped
    assert ("base" in read_yaml(path)) != is_complete and config.run == name
    assert flat(load_config(str(path))) == flat(load_config(path.stem)) == flat(config)


def test_a_preset_says_only_what_is_different():
    for path in set(CONFIGS.glob("*.yml")) - {COMPLETE}:
        config, keys = flat(load_config(path.name)), read_yaml(path)
        base = flat(load_config(keys.pop("base")[0]))
        for key in keys:
            assert config[key] != base[key], (path.name, key)


# ---------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("key: 3  # [1..8] so many", (int, False, [1, 8])),
        ("key: 3  # [1..] so many", (int, False, [1, None])),
        ("key: 0.5  # [0.0..1.0]", (float, False, [0.0, 1.0])),
        ("key: 1e-3  # [0.001..] a rate", (float, False, [0.001, None])),
        ("key: uniform  # [uniform | pfsp] which", (str, False, ["uniform", "pfsp"])),
        ("key: true  # whether (a) [or] b", (bool, False, None)),
        ("key: no", (bool, False, None)),
        ("key: some text  # which", (str, False, None)),
        ("key: [0.5, 1]  # [0.0..] of each", (float, True, [0.0, None])),
        ("key: []  # [0..9] of each", (int, True, [0, 9])),
        ("key: []  # names", (str, True, None)),
    ],
)
def test_a_rule_is_read_from_the_line(tmp_path, line, rule):
    ((text, comment),) = read_yaml(CONFIGS / written(tmp_path, line)).values()
    assert rule_of(text, comment) == rule


def test_rules_and_values_of_the_complete_file():
    assert RULES["gradient_steps"] == (int, False, [1, None])
    assert RULES["train_ratio"][0] is float and RULES["replay.batch_length"][2] == [2, None]
    assert RULES["opponents.choice"] == (str, False, ["uniform", "pfsp"])
    assert RULES["dreamer.observation_scale"] == (float, True, [0.000001, None])
    assert RULES["dreamer.switches"] == (int, True, [0, None])
    assert RULES["opponents.files"] == (str, True, None)
    assert RULES["hockey.mirror"] == (bool, False, None) and RULES["run"] == (str, False, None)
    config = flat(load_config("hockey.yml"))
    for key, (kind, is_list, _) in RULES.items():
        values = config[key] if is_list else [config[key]]
        assert all(type(value) is kind for value in values), key


def wrong_texts(kind, is_list, allowed):
    """Texts that no key with this rule may have."""
    if is_list:
        items = [wrong for wrong in wrong_texts(kind, False, allowed) if isinstance(wrong, str)]
        return ["1", "weak", "", *([wrong] for wrong in items)]
    if kind is bool:
        return ["maybe", "1", "0.0", "null", "", ["true"]]
    if kind is str:
        return ["${x}", "???", ["a"]] + (["quick", "7", "", "True"] if allowed else [])
    low, high = allowed
    wrong = ["fast", "", "null", "true", ["1"], "nan", ".nan", "inf", "-inf", "1e999", "1_0x"]
    wrong += [str(low - 1)] + ([] if high is None else [str(high + 1)])
    return wrong + (["1.5", "0x10", "1e-3", f"{low}.0"] if kind is int else ["1e-3x", "1,5"])


@pytest.mark.parametrize("key", sorted(RULES))
def test_every_wrong_value_is_refused_in_one_line(key):
    for text in wrong_texts(*RULES[key]):
        with pytest.raises(UserError) as caught:
            convert(key, text, RULES, "mine.yml")
        message = str(caught.value)
        assert "mine.yml" in message and key in message and "\n" not in message, text


@given(st.sampled_from(sorted(RULES)), st.data())
def test_every_typo_is_named_with_the_nearest_key(key, data):
    *group, last = key.rpartition(".")
    place = data.draw(st.integers(0, len(last)))
    wrong = "".join([*group, last[:place], "q", last[place:]])
    with pytest.raises(UserError) as caught:
        convert(wrong, "3", RULES, "mine.yml")
    message = str(caught.value)
    assert "mine.yml" in message and f"'{wrong}'" in message and "\n" not in message
    assert f"did you mean '{key}'?" in message


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("seed=010", "seed", 10),
        ("gradient_steps=1e6", "gradient_steps", 1000000),
        ("seed=2147483647", "seed", 2147483647),
        ("train_ratio=1e-3", "train_ratio", 0.001),
        ("train_ratio=3", "train_ratio", 3.0),
        ("run=20241125", "run", "20241125"),
        ("run=1e6", "run", "1e6"),
        ("run=no", "run", "no"),
        ("run='a b'", "run", "a b"),
        ("run=a=b", "run", "a=b"),
        ("device=cuda:1", "device", "cuda:1"),
        ("tracker=none", "tracker", "none"),
        ("dreamer.norm=none", "dreamer.norm", "none"),
        ("dreamer.switches=[]", "dreamer.switches", []),
        ("dreamer.observation_scale=[1, 2.5, 1e-2]", "dreamer.observation_scale", [1, 2.5, 0.01]),
        (
            "opponents.files=[a.safetensors,1e3,010]",
            "opponents.files",
            ["a.safetensors", "1e3", "010"],
        ),
        *(
            (f"hockey.mirror={text}", "hockey.mirror", True)
            for text in ("true", "yes", "on", "TRUE")
        ),
        *((f"hockey.mirror={text}", "hockey.mirror", False) for text in ("false", "no", "Off")),
    ],
)
def test_an_override_means_what_it_says(override, key, value):
    found = OmegaConf.select(load_config("hockey", [override]), key)
    found = list(found) if isinstance(value, list) else found
    assert found == value and type(found) is type(value)


def test_a_whole_number_is_never_rounded():
    number = 10**9 - 1
    assert load_config("hockey", [f"gradient_steps={number}"]).gradient_steps == number
    message = refusal("hockey.yml", [f"gradient_steps={2**60 + 1}"])
    assert message.endswith(f"must be from 1 to 1000000000, not {2**60 + 1}.")
    assert "from 1e-06 to 1e+30" in refusal("hockey.yml", ["train_ratio=1e31"])


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("dreamer.actor_rate=fast", "a number"),
        ("dreamer.hidden_sise=3", "dreamer.hidden_size"),
        ("hockey=3", "'hockey'.* group"),
        ("dreamer={a: 1}", "'dreamer'.* group"),
        ("seed={a: 1}", "seed"),
        ("seed", "key=value"),
        ("=3", "key=value"),
        ("seed=", "whole number"),
        ("seed=1.5", "whole number"),
        ("seed=[", "not understood"),
        ("seed=${nothing}", "written out"),
        ("run=${seed}", "written out"),
        ("run=???", "written out"),
        ("run=#1", "written out"),
        ("init=a: b", "written out"),
        ("run=a/b", "plain file name"),
        ("run=..", "plain file name"),
        ("run=''", "plain file name"),
        ("run=-x", "plain file name"),
        ("run='a '", "plain file name"),
        ('run="a\\0b"', "plain file name"),
        ("run=" + 201 * "a", "200 bytes"),
        ("dreamer.std_min=2", "std_min"),
        ("opponents.random=0.1", "opponents.random"),
        ("base=pendulum.yml", "'base'"),
        ("seed=!!python/object/apply:os.system [x]", "seed"),
    ],
)
def test_wrong_overrides_are_refused_in_one_line(override, word):
    message = refusal("hockey.yml", [override])
    assert re.search(word, message), message


def test_a_critic_that_learns_from_nothing_is_refused():
    assert "critic_replay" in refusal("hockey.yml", ["dreamer.critic_replay=0"])


# ---------------------------------------------------------------------------- files and bases


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]",
        "word",
        "a: [",
        "a: 1\na: 2",
        "\x00",
        "",
        "5: 3",
        "dreamer: 5",
        "dreamer:",
        "base: [a]",
    ],
)
def test_files_that_are_no_config_are_refused_in_one_line(tmp_path, text):
    assert "mine.yml" in refusal(written(tmp_path, text))


def test_unknown_config_file_and_directory(tmp_path):
    message = refusal("hokey.yml")
    assert "hokey.yml" in message and "hockey.yml" in message
    assert str(tmp_path) in refusal(str(tmp_path))
    binary = tmp_path / "binary.yml"
    binary.write_bytes(b"\xff\xfe\x00\xd8")
    assert "binary.yml" in refusal(str(binary))


def test_a_key_that_stands_twice_is_refused(tmp_path):
    text = "base: hockey.yml\n{}\nseed: 1\ndreamer:\n  horizon: 5\n{}"
    load_config(written(tmp_path, text.format("", "")))
    assert "'seed' stands there twice" in refusal(written(tmp_path, text.format("seed: 1", "")))
    twice = refusal(written(tmp_path, text.format("", "  horizon: 6")))
    assert "'dreamer.horizon' stands there twice" in twice


def test_a_base_may_have_a_base_and_the_last_one_counts(tmp_path):
    written(tmp_path, "base: pendulum\nseed: 1\ndreamer:\n  horizon: 7\n  bins: 9", "one.yml")
    (tmp_path / "deeper").mkdir()
    path = written(tmp_path, "base: ../one.yml\nseed: 2\nlog_every: 3", "deeper/two.yml")
    config = load_config(path, ["log_every=4"])
    assert (config.environment, config.run) == ("Pendulum-v1", "pendulum")
    assert (config.seed, config.dreamer.horizon, config.dreamer.bins) == (2, 7, 9)
    assert config.log_every == 4 and config.dreamer.discount == 0.99


def test_a_file_without_a_base_stands_on_the_complete_one(tmp_path):
    config = load_config(written(tmp_path, "seed: 3"))
    assert flat(config) == flat(load_config("hockey.yml", ["seed=3"]))


def test_a_missing_base_is_refused(tmp_path):
    assert "'nobody.yml'" in refusal(written(tmp_path, "base: nobody.yml"))


@pytest.mark.parametrize("names", [["mine"], ["mine", "other"], ["mine", "other", "third"]])
def test_a_circle_of_bases_is_refused(tmp_path, names):
    for name, base in zip(names, [*names[1:], names[0]], strict=True):
        written(tmp_path, f"base: {base}.yml", f"{name}.yml")
    assert "circle" in refusal("mine.yml")


def test_a_circle_over_another_folder_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    written(tmp_path / "in", "base: ../in/mine.yml")
    assert "circle" in refusal(tmp_path / "in" / "mine.yml")


def test_what_is_wrong_in_a_base_is_said_of_the_base(tmp_path):
    written(tmp_path, "base: hockey.yml\nsede: 3", "one.yml")
    path = written(tmp_path, "base: one.yml\nseed: 2", "two.yml")
    message = refusal(path)
    assert "one.yml" in message and "two.yml" not in message


def test_a_rule_changes_with_the_complete_file(tmp_path, monkeypatch):
    """One place to change: a new key there is known, its rule is obeyed."""
    text = COMPLETE.read_text() + "\nnew: 3  # [1..5] of something\n"
    complete = CONFIGS / written(tmp_path, text, "hockey.yml")
    monkeypatch.setattr(config_module, "COMPLETE", complete)
    assert load_config(complete, ["new=5"]).new == 5
    assert "from 1 to 5" in refusal(complete, ["new=6"])


# ---------------------------------------------------------------------------- changes


def test_what_changed_is_found_key_by_key():
    before = {"seed": 1, "a": {"b": 2, "c": [1, 2]}, "resume": False, "gone": 1}
    after = {"seed": 1, "a": {"b": 3, "c": [1, 3]}, "resume": True, "new": math.pi}
    expected = [("a.b", 2, 3), ("a.c", [1, 2], [1, 3]), ("gone", 1, "nothing")]
    assert list(changes(before, after)) == [*expected, ("new", "nothing", math.pi)]
