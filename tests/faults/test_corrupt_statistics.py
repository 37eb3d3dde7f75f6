"""Gathered statistics of any content: what `gather` wrote, damaged, of other tensors, or with other metadata."""

import struct

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from tests.faults.cases import try_cases
from tests.faults.strategies import NAMES, NUMBERS, ODD_NUMBERS, WORDS, as_json, damaged, values
from tests.faults.test_corrupt_safetensors import header_of, lying_headers
from tests.merging.build import random_states

KINDS = {"fisher": "fisher", "gram": "regmean"}
"""What is gathered, and the method that needs it."""
CASE, OTHER = "../inputs/case.safetensors", "../inputs/other.safetensors"


def statistics_of(state, kind):
    """Tensors as `gather` names and shapes them."""
    if kind == "fisher":
        return {name: tensor.square() for name, tensor in state.items()}
    matrices = {name: tensor for name, tensor in state.items() if tensor.ndim == 2}
    return {name: tensor.T @ tensor for name, tensor in matrices.items()}


def metadata_of(kind):
    about = {"format": "pt", "kind": kind, "batches": "2", "examples": "48"}
    return about | ({"rms": "0.5", "labels": "data"} if kind == "fisher" else {"inputs_first": "[]"})


def saved(state, about):
    """A file whose metadata stand in the order of their names; safetensors writes them in any."""
    header, content = header_of(save(state, about))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = as_json(header)
    return struct.pack("<Q", len(text)) + text + content


@st.composite
def other_statistics(draw, tensors, metadata):
    """A file whose metadata or tensors are of another kind than the merge needs."""
    texts = st.one_of(
        st.sampled_from([*KINDS, *WORDS, "[1]", "[[]]", '{"a": 1}', "[" * 100_000, "1e999", "-1", "0x1", ""]),
        st.sampled_from([*NUMBERS, *ODD_NUMBERS]).map(str),
        values.map(lambda value: as_json(value).decode()),
    )
    about, state = dict(metadata), dict(tensors)
    what = draw(st.sampled_from(["metadata", "metadata", "metadata", "entries", "shape", "name", "dtype"]))
    name = draw(st.sampled_from(sorted(state)))
    if what == "metadata":
        key = draw(st.sampled_from(sorted({*about, "inputs_first", "rms"})))
        about[key] = draw(texts)
    elif what == "entries":
        state[name] = torch.full(state[name].shape, draw(st.sampled_from([*ODD_NUMBERS, -1.0, 0.0, 1e38])))
    elif what == "shape":
        state[name] = torch.ones(draw(st.sampled_from([(), (0,), (1,), (5, 7), (7, 7), (5,), (1 << 12, 1)])))
    elif what == "name":
        state[draw(st.sampled_from(NAMES)).replace("\ud800", "?").replace("\0", "0")] = state.pop(name)
    else:
        state[name] = state[name].to(draw(st.sampled_from([torch.bool, torch.int64, torch.complex64, torch.float16])))
    return saved(state, about)


@pytest.mark.parametrize("kind", KINDS)
def test_statistics(watch, kind):
    inputs = watch.root / "inputs"
    base, *tuned = random_states(inputs, 2)
    tensors, metadata = statistics_of(load_file(tuned[0]), kind), metadata_of(kind)
    save_file(statistics_of(load_file(tuned[1]), kind), inputs / "other.safetensors", metadata)
    merge = ["merge", "--models", *tuned, "--base", base, "--output", "out"]
    whole = saved(tensors, metadata)

    def merged(method, *files):
        return lambda: watch.command([*merge, "--method", method, "--statistics", *files])

    quick = (
        merged(KINDS[kind], CASE, OTHER),
        merged(KINDS[kind], OTHER, CASE),
        merged("fisher", CASE, CASE),
        merged("regmean", CASE, CASE),
        lambda: watch.command([*merge, "--method", KINDS[kind], "--statistics", CASE, OTHER, "--dry_run"]),
        lambda: watch.command(["inspect", "checkpoint", CASE]),
    )
    (inputs / "case.safetensors").write_bytes(whole)
    assert watch.command([*merge, "--method", KINDS[kind], "--statistics", CASE, OTHER]) == 0
    strategy = st.one_of(other_statistics(tensors, metadata), lying_headers(whole), damaged(whole))
    try_cases("statistics", strategy, (inputs / "case.safetensors").write_bytes, quick)
