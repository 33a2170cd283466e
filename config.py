"""Configs: reads a YAML on top of its `base`, replaces keys by the command line's, checks them all.

`configs/hockey.yml` is the one complete file: what stands there is a key, and the rule in brackets
at the head of its comment says what it may be. Every other file holds differences only.

    key: 3       # [1..8] ...         a whole number from 1 to 8; [1..]: to 10^9
    key: 0.5     # [0.0..1.0] ...     any number from 0 to 1; [0.0..]: to 1e30
    key: uniform # [uniform | pfsp]   one of these words
    key: true    # ...                without a rule: true or false, or any text
    key: [0.5]   # [0.0..] ...        a list, each item by the rule
"""

import difflib
import re
from collections.abc import Mapping
from functools import reduce
from pathlib import Path

import yaml
from omegaconf import OmegaConf

from machine import explained
from utils import UserError

CONFIGS = Path(__file__).parent / "configs"
COMPLETE = CONFIGS / "hockey.yml"
LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # ten times faster where it is built
TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def load_config(name, overrides=()):
    """Returns the read-only config of a path, or name in configs/, with `key=value` overrides.

    Raises `UserError` for the first thing in it that is not as it should be.
    """
    rules = {key: rule_of(text, comment) for key, (text, comment) in read_yaml(COMPLETE).items()}
    files = [find_config(name)]
    while base := read_yaml(files[-1]).get("base"):
        if isinstance(base[0], list):
            raise UserError(f"{files[-1]}: base must be one value: {base[0]}.")
        with explained(f"{files[-1]}: base", UserError):
            files.append(find_config(base[0], files[-1].parent))
        if files[-1].resolve() in [file.resolve() for file in files[:-1]]:
            raise UserError(f"{files[-2]}: base: {base[0]} leads in a circle.")
    flat = {}
    for file in (COMPLETE, *reversed(files)):
        for key, (text, _) in read_yaml(file).items():
            if key != "base":
                flat[key] = convert(key, text, rules, str(file))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"'{override}' on the command line must read key=value.")
        with explained(f"'{override}' is not understood", yaml.YAMLError):
            text = plain(yaml.compose(text, LOADER)) if text else ""
        flat[key] = convert(key, text, rules, "the command line")
    run = flat["run"]
    is_plain = run.isprintable() and run == run.strip() and not set(run) & set('/\\:*?"<>|')
    if not run or not is_plain or run[0] in ".-" or len(run.encode()) > 200:
        raise UserError(f"run must be a plain file name of at most 200 bytes, not {run!r}.")
    if flat["dreamer.critic_imagination"] == flat["dreamer.critic_replay"] == 0:
        raise UserError("dreamer.critic_imagination and dreamer.critic_replay must not both be 0.")
    tree = {}
    for key, value in flat.items():
        *groups, name = key.split(".")
        reduce(lambda part, group: part.setdefault(group, {}), groups, tree)[name] = value
    config = OmegaConf.create(tree)
    OmegaConf.set_readonly(config, True)
    return config


def find_config(name, folder=Path()):
    """Returns the path of a config: a path (from `folder`), or in configs/ here or by the code."""
    named = [path / f"{name}{end}" for path in (Path("configs"), CONFIGS) for end in ("", ".yml")]
    for path in (folder / name, *named):
        if path.is_file():
            return path.resolve() if path.samefile(COMPLETE) else path
    known = ", ".join(sorted(path.name for path in CONFIGS.glob("*.yml")))
    raise UserError(f"There is no config '{name}', neither as a path nor in configs/ ({known}).")


def read_yaml(path):
    """Returns "a.b.c" -> (its text, or list of texts; the comment of its line) of a YAML file."""
    errors = yaml.YAMLError, UnicodeDecodeError, OSError
    with explained(f"{path} is not readable as YAML", *errors):
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, LOADER)
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{path} must hold 'key: value' lines.")
    lines, found = text.splitlines(), {}
    for key, value in leaves(node):
        if key in found:
            raise UserError(f"{path}: the key '{key}' stands there twice.")
        comment = lines[value.start_mark.line].partition("#")[2].strip()
        found[key] = plain(value), comment
    return found


def leaves(node, prefix=""):
    """Yields ("a.b.c", node) for everything in a YAML mapping that is no mapping itself."""
    for key, value in node.value:
        if isinstance(value, yaml.MappingNode):
            yield from leaves(value, f"{prefix}{key.value}.")
        else:
            yield f"{prefix}{key.value}", value


def plain(node):
    """Returns a YAML node as a text, or as a list of texts."""
    if isinstance(node, yaml.SequenceNode):
        return [str(plain(item)) for item in node.value]
    return node.value if isinstance(node, yaml.ScalarNode) else "{...}"


def rule_of(text, comment):
    """Returns (kind, is it a list, (low, high) or words or None) of a line of the complete file."""
    is_list, rule = isinstance(text, list), re.match(r"\[(.*?)\]", comment)
    if rule and ".." in rule[1]:
        kind = float if re.search(r"\d\.\d", rule[1]) else int
        return kind, is_list, [kind(end) if end.strip() else None for end in rule[1].split("..")]
    if rule:
        return str, is_list, rule[1].split(" | ")
    return bool if not is_list and text.lower() in TRUTHS else str, is_list, None


def convert(key, text, rules, source):
    """Returns the text(s) of a key as what they mean; raises `UserError` if that breaks a rule."""
    if key not in rules:
        close = difflib.get_close_matches(key, rules, 1, cutoff=0.5)
        inside = [known for known in rules if known.startswith(f"{key}.")]
        hint = f"did you mean '{close[0]}'?" if close else "configs/hockey.yml has all that are."
        hint = f"it is a group, of {inside[0]} and others." if inside else hint
        raise UserError(f"{source}: '{key}' is no key; {hint}")
    kind, is_list, allowed = rules[key]
    if is_list != isinstance(text, list):
        raise UserError(f"{source}: {key} must be {'a list' if is_list else 'one value'}: {text}.")
    if is_list:
        return [convert_one(f"{source}: {key} (in the list)", item, kind, allowed) for item in text]
    return convert_one(f"{source}: {key}", text, kind, allowed)


def convert_one(where, text, kind, allowed):
    """Returns a text as a `kind` that is allowed: from low to high, or one of these words."""
    if kind is str and allowed and text not in allowed:
        raise UserError(f"{where} must be one of {', '.join(allowed)}, not '{text}'.")
    # OmegaConf would look for something else at the first two; the third was no text but a mapping
    if "${" in text or text in ("???", "{...}"):
        raise UserError(f"{where} must be written out, not '{text}'.")
    if kind is str:
        return text
    try:
        value = TRUTHS[text.lower()] if kind is bool else float(text)
        if kind is int:  # 1e6 is one; a large one must not be rounded
            value = int(value) if "e" in text.lower() and value % 1 == 0 else int(text)
    except (KeyError, ValueError, OverflowError):
        words = {int: "a whole number", float: "a number", bool: "true or false"}
        raise UserError(f"{where} must be {words[kind]}, not '{text}'.") from None
    if kind is not bool:
        low, high = allowed
        high = (10**9 if kind is int else 1e30) if high is None else high
        if not low <= value <= high:  # neither NaN nor infinite
            raise UserError(f"{where} must be from {low} to {high}, not {text}.")
    return value


def changes(before, after, prefix=""):
    """Yields (key, old, new) for each key of two configs or nested dicts whose value differs."""
    for key in sorted({*before, *after}):
        old, new = before.get(key, "nothing"), after.get(key, "nothing")
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from changes(old, new, f"{prefix}{key}.")
        elif old != new and key not in ("resume", "overwrite"):
            yield f"{prefix}{key}", old, new
