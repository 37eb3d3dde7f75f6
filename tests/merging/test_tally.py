"""What `dare` and `ties` kept, against counts by hand."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_wsl.merging import merge
from lit_wsl.merging.model_scan import scan_model
from tests.merging.build import random_states


@pytest.fixture
def states(tmp_path):
    """A base and two tuned models, of which one lacks a parameter."""
    base, first, second = random_states(tmp_path, 2)
    shorter = load_file(second)
    del shorter["scalar"]
    save_file(shorter, second)
    return base, [first, second]


def stats_of(states, out, method, **params):
    base, tuned = states
    merge(models=tuned, base=base, method=method, method_params=params, output=out, output_format="delta", tally=True)
    return json.loads((out / "merge_metadata.json").read_text())[f"{method}_stats"], load_file(
        out / "delta.safetensors"
    )


def test_dare_stats(states, tmp_path):
    """A2.8"""
    stats, merged = stats_of(states, tmp_path / "out", "dare", drop_rate=0.4)
    entries = sum(delta.numel() for delta in merged.values())
    assert stats["total_entries"] == 2 * entries
    assert stats["merged_nonzero_entries"] == sum(int(delta.count_nonzero()) for delta in merged.values())
    assert stats["merged_nonzero_entries"] <= stats["kept_entries"] < 2 * entries
    assert stats["effective_sparsity"] == pytest.approx(1 - stats["kept_entries"] / (2 * entries))
    assert abs(stats["effective_sparsity"] - 0.4) < 0.15
    assert (stats["drop_rate"], stats["keep_prob"]) == (0.4, 0.6)
    assert stats["merged_parameter_count"] == len(merged) == 3
    assert (stats["skipped_missing_key_count"], stats["skipped_shape_mismatch_count"]) == (1, 0)


def test_ties_stats(states, tmp_path):
    """A2.9"""
    stats, merged = stats_of(states, tmp_path / "out", "ties", k=30)
    base, *tuned = (load_file(file) for file in (states[0], *states[1]))
    vectors = torch.stack([torch.cat([(t[n] - base[n]).flatten() for n in merged]) for t in tuned])
    count = vectors.shape[1]
    kept = torch.zeros_like(vectors)
    for row, vector in zip(kept, vectors, strict=True):
        largest = vector.abs().topk(-(-30 * count // 100)).indices
        row[largest] = vector[largest]
    plus, minus = (kept > 0).any(0), (kept < 0).any(0)
    assert stats["trim_density"] == int(kept.count_nonzero()) / kept.numel()
    assert stats["sign_conflict_rate"] == int((plus & minus).sum()) / int((plus | minus).sum())
    assert stats["merged_nonzero_entries"] == sum(int(delta.count_nonzero()) for delta in merged.values())
    assert stats["merged_parameter_count"] == 3


def test_nothing_is_counted_unless_asked(states, tmp_path):
    base, tuned = states
    merge(models=tuned, base=base, method="ties", output=tmp_path / "out")
    assert "ties_stats" not in json.loads((tmp_path / "out/merge_metadata.json").read_text())


def test_every_reason_counts_where_it_belongs(states, tmp_path):
    """A2.9: a parameter that the base lacks is missing; integers are neither missing nor of another shape."""
    base, tuned = states
    first, second = (load_file(file) for file in tuned)
    save_file(first | {"layers.0.only": torch.ones(3), "scalar": torch.ones(2)}, tuned[0])
    save_file(second | {"layers.0.only": torch.ones(3), "scalar": torch.ones(2)}, tuned[1])
    merge(models=tuned, base=base, method="ties", mismatch="copy_base", output=tmp_path / "out", tally=True)
    metadata = json.loads((tmp_path / "out/merge_metadata.json").read_text())
    assert set(metadata["skipped"]) == {"layers.0.only", "scalar"}
    stats = metadata["ties_stats"]
    assert (stats["skipped_missing_key_count"], stats["skipped_shape_mismatch_count"]) == (1, 1)


def test_a_method_that_counts_nothing_costs_no_pass(states, tmp_path, monkeypatch):
    base, tuned = states
    monkeypatch.setattr("lit_wsl.merging.tally.workers", None)
    merge(models=tuned, base=base, method="uniform_delta", output=tmp_path / "out", tally=True)
    assert not any("stats" in key for key in json.loads((tmp_path / "out/merge_metadata.json").read_text()))


def test_the_model_is_scanned_once_for_merge_and_tally(states, tmp_path, monkeypatch):
    base, tuned = states
    scans = []
    monkeypatch.setattr("lit_wsl.merging.run.scan_model", lambda *given: scans.append(given) or scan_model(*given))
    merge(models=tuned, base=base, method="ties", output=tmp_path / "out", tally=True)
    assert len(scans) == 1
