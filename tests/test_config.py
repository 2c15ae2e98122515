"""gpt/config.py: published values, round trips, errors, resuming, and the configs and scripts of the project."""

import argparse
import dataclasses
import datetime
import re
import runpy
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt.config import (
    GPT_CONFIG_124M,
    DataConfig,
    GPTConfig,
    OptimConfig,
    TrainConfig,
    config_fields,
    from_dict,
    load_config,
    read_toml,
    to_toml,
)
from gpt.exchange.layouts import GPT2_SIZES
from gpt.model import GPTModel
from gpt.system.errors import ELSEWHERE, did_you_mean

PROJECT = Path(__file__).resolve().parent.parent
FIELDS = dict(config_fields(TrainConfig))
CONFIGS = sorted((PROJECT / "configs").rglob("*.toml"))
SCRIPTS = sorted((PROJECT / "scripts").glob("*.py"))


# --- published values -------------------------------------------------------------------------------------------------


def test_the_book_configuration():
    assert GPT_CONFIG_124M == {
        "vocab_size": 50257,
        "context_length": 1024,
        "emb_dim": 768,
        "n_heads": 12,
        "n_layers": 12,
        "drop_rate": 0.1,
        "qkv_bias": False,
    }
    assert from_dict(GPTConfig, GPT_CONFIG_124M) == GPTConfig()


@pytest.mark.parametrize(
    "name, count",
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_gpt2_sizes_have_the_published_parameter_counts(name, count):
    with torch.device("meta"):
        assert GPTModel(GPT2_SIZES[name]).num_parameters() == count
    assert GPT2_SIZES[name].head_width == 64


# --- to TOML and back -------------------------------------------------------------------------------------------------


def values_of(field):
    """Any value that a field allows."""
    low, high = field.metadata["low"], field.metadata["high"]
    if get_origin(field.type) is Literal:
        return st.sampled_from(get_args(field.type))
    return {
        bool: st.booleans(),
        str: st.text(),
        int: st.integers(low, 2**40 if high is None else int(high)),
        float: st.floats(low, high, allow_nan=False, allow_infinity=False),
    }[field.type]


@st.composite
def configs(draw, kind=TrainConfig):
    values = {
        f.name: draw(configs(f.type) if dataclasses.is_dataclass(f.type) else values_of(f))
        for f in dataclasses.fields(kind)
    }
    if kind is GPTConfig:
        widest = FIELDS["model.emb_dim"].metadata["high"]
        values["n_heads"] = min(values["n_heads"], int(widest))
        values["emb_dim"] = values["n_heads"] * draw(st.integers(1, int(widest) // values["n_heads"]))
        values["n_kv_heads"] = draw(st.sampled_from([0, 1, values["n_heads"]]))
        values["head_dim"] += values["head_dim"] % 2
        if values["position"] == "rope" and values["emb_dim"] // values["n_heads"] % 2:
            values["head_dim"] = max(2, values["head_dim"])
    if kind is OptimConfig:
        values["min_lr"], values["lr"] = sorted((values["min_lr"], values["lr"]))
    if kind is DataConfig and values["packing"] == "document":
        values["stride"] = 0
    for f in dataclasses.fields(kind):
        if f.metadata.get("applies_to") and values["name"] not in f.metadata["applies_to"].split(", "):
            values[f.name] = f.default
    return kind(**values)


def test_a_setting_of_another_objective_or_adapter_is_refused():
    assert from_dict(TrainConfig, {"objective": {"name": "masked", "mask_rate": 0.3}}).objective.mask_rate == 0.3
    with pytest.raises(
        ValueError, match=r"objective\.mask_rate is a setting of masked and infilling, not of 'distill'"
    ):
        from_dict(TrainConfig, {"objective": {"name": "distill", "mask_rate": 0.3}})
    with pytest.raises(ValueError, match=r"adapter\.rank is a setting of lora, not of 'none'"):
        from_dict(TrainConfig, {"adapter": {"rank": 4}})


@settings(max_examples=25, deadline=None)
@given(configs())
def test_every_config_survives_the_round_trip_through_toml(tmp_path_factory, config):
    path = tmp_path_factory.getbasetemp() / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert load_config(path) == config
    assert from_dict(TrainConfig, dataclasses.asdict(config)) == config


def test_settings_left_out_keep_their_defaults():
    config = from_dict(TrainConfig, {"max_steps": 5, "model": {"n_layers": 3}})
    assert config == dataclasses.replace(TrainConfig(), max_steps=5, model=GPTConfig(n_layers=3))


def test_windows_files_are_read(tmp_path):
    (tmp_path / "x.toml").write_bytes(b"\xef\xbb\xbfmax_steps = 5\r\n[model]\r\nn_layers = 3\r\n")
    assert read_toml(tmp_path / "x.toml") == {"max_steps": 5, "model": {"n_layers": 3}}


# --- any input gives a TrainConfig or a ValueError --------------------------------------------------------------------


def is_config_or_value_error(make) -> bool:
    try:
        return isinstance(make(), TrainConfig)
    except ValueError as error:
        return bool(str(error))


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5), st.datetimes(),
    st.sampled_from([0, 1, -1, 0.5, "auto", "float32", b"1", 1j, (), {1}, int, GPTConfig, GPTConfig()]),
)  # fmt: skip
NAMES = st.sampled_from(["model", "data", "optim", "objective", "x", "", *{n.rpartition(".")[2] for n in FIELDS}])
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4))


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(NAMES, VALUES, max_size=4))
@example({"model": {"init": ["gpt2"]}})
@example({"max_steps": datetime.date(2020, 1, 1)})
@example({"model": OptimConfig()})
@example({"model": None})
def test_any_dictionary(values):
    assert is_config_or_value_error(lambda: from_dict(TrainConfig, values))


@pytest.mark.parametrize("text", [
    b"max_steps = ", b"\xff\xfe", b"[model\n", b"max_steps = 1\nmax_steps = 2", b"seed = 0000-00-00", b"lr = [1]",
    b"model = 3", b"[[model]]\nn_layers = 1", b"[model]\ndrop_rate = nan", b'device = "\\uD800"', b"seed = 1.5",
])  # fmt: skip
def test_a_toml_file_with_a_mistake_is_refused(tmp_path, text):
    (tmp_path / "x.toml").write_bytes(text)
    with pytest.raises(ValueError):
        load_config(tmp_path / "x.toml")


def test_a_missing_file_and_a_folder_are_no_config(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ValueError, match="no config file"):
            read_toml(path)


# --- fields -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_has_a_help_text_and_its_default_is_within_its_bounds(name):
    field = FIELDS[name]
    assert len(field.metadata["help"]) >= 10
    low, high = field.metadata["low"], field.metadata["high"]
    assert low is None or low <= field.default
    assert high is None or field.default <= high
    assert (low is None) == (field.type not in (int, float)), "every number has a lower bound"


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.metadata["low"] is not None])
def test_bounds_are_enforced_and_named(name):
    field = FIELDS[name]
    for bound, beyond, words in (("low", -1, "at least"), ("high", 1, "at most")):
        limit = field.metadata[bound]
        if limit is not None:
            table, _, bare = name.rpartition(".")
            values = {bare: limit + beyond}
            with pytest.raises(ValueError, match=rf"^{re.escape(name)} must be {words} {limit}, not "):
                from_dict(TrainConfig, {table: values} if table else values)


@pytest.mark.parametrize("config", [TrainConfig(), *(getattr(TrainConfig(), n) for n in ("model", "data", "optim"))])
def test_configs_are_frozen(config):
    for field in dataclasses.fields(config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, getattr(config, field.name))


def test_an_int_is_accepted_as_a_float():
    config = OptimConfig(lr=1, min_lr=0)
    assert config == OptimConfig(lr=1.0, min_lr=0.0)
    assert type(config.lr) is float


@pytest.mark.parametrize(("table", "name", "wrong"), [("data", "packing", "files"), ("model", "backbone", "rnn")])
def test_an_unknown_choice_is_refused_and_the_known_ones_are_listed(table, name, wrong):
    choices = ", ".join(map(repr, get_args(FIELDS[f"{table}.{name}"].type)))
    with pytest.raises(ValueError, match=rf"^{table}\.{name} must be one of {choices}, not '{wrong}'"):
        from_dict(TrainConfig, {table: {name: wrong}})


@pytest.mark.parametrize(
    "name, near",
    [
        ("n_layer", "model.n_layers"),
        ("model.n_layer", "model.n_layers"),
        ("n_layers", "model.n_layers"),
        ("lr", "optim.lr"),
        ("max_step", "max_steps"),
        ("model.embed_dim", "model.emb_dim"),
        ("context_len", "model.context_length"),
        ("batchsize", "batch_size"),
        ("block_size", "model.context_length"),
        ("model.dropout", "model.drop_rate"),
        ("learning_rate", "optim.lr"),
    ],
)
def test_the_nearest_name_is_suggested(name, near):
    assert did_you_mean(name, list(FIELDS)) == f"did you mean {near}?"


def test_a_name_near_none_gets_the_list_of_all():
    said = did_you_mean("zzz", list(FIELDS))
    assert all(known in said for known in FIELDS)


def test_settings_of_other_programs_are_known_by_their_names():
    options = {*FIELDS, "run", "resume"}  # of train.py
    assert {*ELSEWHERE.values()} <= options
    assert not options & {*ELSEWHERE}


# --- shipped configs and scripts --------------------------------------------------------------------------------------


def test_configs_and_scripts_are_found():
    assert "story.toml" in [path.name for path in CONFIGS]
    assert len(SCRIPTS) >= 4


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_shipped_config_loads_and_its_header_has_its_command(path):
    assert isinstance(load_config(path), TrainConfig)
    header = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        header.append(line)
    named = path.relative_to(PROJECT).as_posix()
    assert re.search(rf"python scripts/train\.py --config {re.escape(named)}(\s|$)", "\n".join(header))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_help_documents_every_option(path, monkeypatch, capsys):
    parsers = []
    original = argparse.ArgumentParser.print_help
    monkeypatch.setattr(
        argparse.ArgumentParser, "print_help", lambda self, *args: (parsers.append(self), original(self, *args))
    )
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert end.value.code in (0, None)
    out, err = capsys.readouterr()
    assert err == ""
    assert len(parsers[0]._actions) > 1
    assert all(action.help for action in parsers[0]._actions)
    if path.name == "train.py":
        for name, field in FIELDS.items():
            default = str(field.default).lower() if field.type is bool else field.default
            assert re.search(rf"^  --{re.escape(name)} ", out, re.MULTILINE)
            text = f"{field.metadata['help']} (default: {'empty' if default == '' else default})"
            assert re.sub(r"\s", "", text) in re.sub(r"\s", "", out), "wherever the lines are broken"
