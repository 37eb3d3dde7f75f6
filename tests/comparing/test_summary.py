"""Totals are the same figures over the entries of several tensors at once."""

import json
from dataclasses import replace

import pytest
import torch

from lit_wsl.comparing.summary import OUTSIDE, kind_of, layer_of, short_kinds, summarise, total, tower_of
from tests.comparing.examples import base, dense, example


def _both(part):
    """Entries of base and fine-tuned model under names that hold the part, side by side."""
    before, after = base().state_dict(), dense().state_dict()
    names = [name for name in before if part in name]
    return [torch.cat([side[name].double().flatten() for name in names]) for side in (before, after)]


@pytest.mark.parametrize(
    ("part", "pick"),
    [
        ("", lambda sums: sums.whole),
        ("q_proj", lambda sums: sums.kinds["self_attn.q_proj"]),
        ("layers.1.", lambda sums: sums.layers["model.layers.1"]),
        ("layers.", lambda sums: sums.towers["model"]),
    ],
    ids=["whole", "kind", "layer", "tower"],
)
def test_totals_are_those_of_all_entries_at_once(part, pick):
    found = pick(summarise(example("dense").findings))
    before, after = _both(part)
    delta = after - before
    assert found.entries == before.numel()
    assert found.diff_norm == pytest.approx(float(delta.norm()), rel=1e-5)
    assert found.relative_diff == pytest.approx(float(delta.norm() / before.norm()), rel=1e-5)
    assert found.changed_ratio == pytest.approx(float((delta.abs() > 1e-6).double().mean()), abs=1e-3)


def test_energy_at_a_rank_is_that_of_the_singular_values():
    before, after = base().state_dict(), dense().state_dict()
    values = [torch.linalg.svdvals((after[n] - before[n]).double()) for n in before if "q_proj" in n]
    expected = sum(float(v[:16].square().sum()) for v in values) / sum(float(v.square().sum()) for v in values)
    energy_at = summarise(example("dense").findings).kinds["self_attn.q_proj"].energy_at
    assert energy_at["16"] == pytest.approx(expected, rel=1e-4)
    assert energy_at["64"] == 1.0  # the matrices have 64 rows


def test_each_tensor_counts_once_in_every_way_of_grouping():
    sums = summarise(example("lora").findings)
    for groups in (sums.kinds, sums.towers):
        assert sum(one.tensors for one in groups.values()) == sums.whole.tensors == 30
    assert sum(one.tensors for one in sums.layers.values()) + sums.towers[OUTSIDE].tensors == 30


def test_ranks_are_those_of_the_changed_matrices():
    sums = summarise(example("lora of two layers").findings)
    assert sums.whole.ranks == [4]
    assert (sums.kinds["self_attn.q_proj"].low_rank, sums.kinds["self_attn.k_proj"].low_rank) == (2, 0)
    assert sums.layers["model.layers.1"].changed == 0


def test_nothing_gives_a_total_of_nothing():
    assert (total([]).relative_diff, total([]).energy_at, total([]).ranks) == (0.0, {}, [])


def test_a_tensor_that_failed_counts_nowhere():
    assert summarise(example("damaged").findings).whole.tensors == 29


def test_totals_are_json():
    content = summarise(example("dense").findings).to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content


@pytest.mark.parametrize(
    ("name", "tower", "layer", "kind"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "model", "model.layers.3", "self_attn.q_proj"),
        ("h.0.attn.c_attn.bias", ".", "h.0", "attn.c_attn"),
        ("lm_head.weight", OUTSIDE, "", "lm_head"),
        ("classifier.1.weight", OUTSIDE, "", "classifier.1"),
        ("logit_scale", OUTSIDE, "", "logit_scale"),
        ("model.layers.1.mlp.experts.7.w1.weight", "model", "model.layers.1", "mlp.experts.*.w1"),
        ("model.layers.1.mlp.experts.down_proj", "model", "model.layers.1", "mlp.experts.down_proj"),
    ],
)
def test_a_name_says_tower_layer_and_kind(name, tower, layer, kind):
    assert (tower_of(name), layer_of(name), kind_of(name)) == (tower, layer, kind)


def test_layers_come_by_their_numbers():
    first = example("lora").findings[1]
    names = [f"{tower}.layers.{at}.mlp.weight" for tower in ("encoder", "decoder") for at in (0, 10, 2)]
    layers = list(summarise([replace(first, name=name) for name in names]).layers)
    assert layers == [f"{tower}.layers.{at}" for tower in ("encoder", "decoder") for at in (0, 2, 10)]


def test_short_names_tell_kinds_apart():
    dense = ["attention.output.dense", "output.dense", "intermediate.dense"]
    short = short_kinds(["attention.self.query", *dense, "x", "a.1"])
    assert list(short.values()) == ["query", *dense, "x", "a.1"]


def test_norms_too_large_to_be_squared_add_up():
    one = next(one for one in example("lora").findings if one.pattern is not None)
    large = replace(one, change=replace(one.change, diff_norm=3e200, base_norm=4e200))
    assert total([large, large]).energy_at == pytest.approx(total([one]).energy_at)
    assert total([large, large]).diff_norm == pytest.approx(3e200 * 2**0.5)
