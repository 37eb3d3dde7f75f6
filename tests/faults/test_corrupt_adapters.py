"""Adapter directories of any content: settings of any type, and tensors that are no factors."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lit_wsl.state.adapters import Adapter, read_adapter_config
from tests.faults.cases import try_cases
from tests.faults.strategies import NAMES, NUMBERS, ODD_NUMBERS, WORDS, as_json, documents, one_field, values
from tests.merging.build import save_adapter, save_bert

LESS_KNOWN = ("layers_to_transform", "target_parameters", "trainable_token_indices", "use_qalora", "eva_config")
PATTERNS = ("(", "[", "(a+)+$", "(?P<", ".*", "query", "^.*query$", "\\", "", "a" * 3000, "(" * 300)


@pytest.fixture
def adapters(watch):
    base = save_bert(watch.root / "inputs" / "base")
    for number in (1, 2):
        save_adapter(base, watch.root / "inputs" / f"a{number}", number)
    return base, watch.root / "inputs" / "a1", watch.root / "inputs" / "a2"


def entries(watch, adapters):
    """Every way to hand an adapter to the program; those that compare are slow and stand once."""
    base, case, other = adapters
    into = ["--output", "out"]
    quick = (
        lambda: watch.call(read_adapter_config, case),
        lambda: watch.call(Adapter, case),
        lambda: watch.command(["merge", "--adapters", case, other, *into]),
        lambda: watch.command(["merge", "--adapters", other, case, "--base", base, *into, "--method", "ties"]),
        lambda: watch.command(["merge", "--adapters", case, *into, "--output_format", "adapter", "--base", base]),
        lambda: watch.command(["merge", "--adapters", case, other, *into, "--output_format", "delta"]),
        lambda: watch.command(["merge", "--adapters", case, "--base", base, *into, "--dry_run"]),
        lambda: watch.command(["inspect", "checkpoint", case]),
        lambda: watch.command(["rename", case, "--list"]),
        lambda: watch.command(["map", case, base]),
    )
    slow = (
        lambda: watch.command(["compare", base, case, "--output_dir", "out"]),
        lambda: watch.command(["extract-lora", base, case, "--output_dir", "out"]),
    )
    return quick * 10 + slow


def test_settings(watch, adapters):
    path = adapters[1] / "adapter_config.json"
    named = json.loads(path.read_text())
    assert Path(named["base_model_name_or_path"]) == adapters[0]
    whole = {**named, "base_model_name_or_path": "../inputs/base", "target_modules": ["query", "value"]}
    numbers = st.sampled_from([*NUMBERS, *ODD_NUMBERS])
    strategy = st.one_of(
        documents(whole, LESS_KNOWN),
        one_field(whole, as_json),
        one_field({**whole, **dict.fromkeys(LESS_KNOWN)}, as_json),
        st.builds(lambda r, alpha: as_json({**whole, "r": r, "lora_alpha": alpha}), numbers, numbers),
        st.builds(
            lambda field, pattern, value: as_json({**whole, field: {pattern: value}}),
            st.sampled_from(["rank_pattern", "alpha_pattern"]),
            st.sampled_from([*PATTERNS, *WORDS, *NAMES]),
            numbers | values,
        ),
    )
    try_cases("adapter settings", strategy, path.write_bytes, entries(watch, adapters))


@st.composite
def other_tensors(draw, state):
    """The tensors of an adapter with some renamed, reshaped, cast, removed, or of other entries."""
    changed = dict(state)
    for _ in range(draw(st.integers(1, 3))):
        if not changed:
            break
        name = draw(st.sampled_from(sorted(changed)))
        tensor = changed.pop(name)
        what = draw(st.sampled_from(["lose", "rename", "shape", "dtype", "entries", "side"]))
        if what == "rename":
            changed[draw(st.sampled_from(NAMES)).replace("\ud800", "?").replace("\0", "0") + name[-20:]] = tensor
        elif what == "shape":
            shape = draw(st.sampled_from([(), (0,), (1,), (4, 0), (0, 16), (3, 16), (16, 4, 1), (64,), (4, 17)]))
            changed[name] = torch.ones(shape)
        elif what == "dtype":
            changed[name] = tensor.to(draw(st.sampled_from([torch.int64, torch.bool, torch.float64, torch.complex64])))
        elif what == "entries":
            changed[name] = torch.full(tensor.shape, draw(st.sampled_from([*ODD_NUMBERS, 1e38, 0.0])))
        elif what == "side":
            swap = {"lora_A": "lora_B", "lora_B": "lora_A"}
            found = next((key for key in swap if key in name), "lora_A")
            changed[name.replace(found, swap.get(found, found))] = tensor
    return changed


def test_tensors(watch, adapters):
    path = adapters[1] / "adapter_model.safetensors"
    strategy = other_tensors(load_file(path))
    try_cases("adapter tensors", strategy, lambda state: save_file(state, path), entries(watch, adapters))
