"""`lit-wsl inspect checkpoint`: the figures are those of the file, and no tensor is read."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lit_wsl.cli.main import run
from lit_wsl.models.describe import describe_checkpoint
from tests.cli.test_main import one_line
from tests.models.checkpoints import Classifier, Module, adapt, save
from tests.models.universal.layers import LitQKV, NanoEmbedding
from tests.training.build import Universal, train


def found_in(capsys, path):
    """What the command prints as JSON."""
    capsys.readouterr()
    assert run(["inspect", "checkpoint", str(path), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_checkpoint_of_a_trainer(capsys, tmp_path):
    module = Universal("r16+embedding")
    train(tmp_path, module, epochs=2)
    found = found_in(capsys, tmp_path / "last.ckpt")
    content = torch.load(tmp_path / "last.ckpt")
    assert (found["kind"], found["epoch"], found["global_step"]) == ("universal", content["epoch"], 10)
    assert found["module"] == "tests.training.build.Universal"
    assert found["versions"]["lightning"] == content["pytorch-lightning_version"]
    assert found["versions"]["lit_wsl"].startswith("0.")
    plain = sum(tensor.numel() for tensor in content["state_dict"].values())
    assert found["weights"] == {"float32": {"tensors": 21, "parameters": plain, "bytes": 4 * plain}}
    expected = {"name": "model", "class": "LlamaForCausalLM", "model_type": "llama", "layers": 2}
    assert found["backbones"] == [expected]
    adapters = found["adapters"]
    assert adapters["layers"] == {"embedding": 1, "linear": 8}
    assert (adapters["ranks"], adapters["scales"], adapters["dora"]) == ({"16": 9}, {"1": 9}, 0)
    trained = [p for p in module.parameters() if p.requires_grad]
    (optimizer,) = found["optimizers"]
    assert optimizer["parameters"] == len(trained)
    assert optimizer["bytes"] == sum(8 * p.numel() + 4 for p in trained), "two moments and a step"
    assert found["schedulers"][0]["last_epoch"] == 10
    assert found["random_states"] == 1
    assert found["bytes"] == (tmp_path / "last.ckpt").stat().st_size


@pytest.mark.parametrize(("sidecar", "copies"), [("exact", 2), ("factors", 1), ("none", 0)])
def test_the_sidecar(capsys, untied, tmp_path, sidecar, copies):
    module = Module(untied)
    adapt(module.model, r=4, lora_alpha=2, target_modules=["q_proj"], use_dora=True, rank_pattern={"layers.1": 2})
    found = found_in(capsys, save(module, tmp_path / "a.ckpt", sidecar))
    assert found["sidecar"]["kind"] == sidecar
    factors = sum(p.nbytes for n, p in module.named_parameters() if "lora_" in n)
    norms, base = 2 * 32 * 8, 2 * 32 * 32 * 4
    assert found["sidecar"]["bytes"] == (factors + norms if copies else 0) + (base if copies == 2 else 0)
    assert found["adapters"]["dora"] == 2
    assert found["hyper_parameters"] == {"model": str(untied)}


def test_the_signature_tells_configurations_apart(untied, tmp_path):
    signatures = []
    for number, rank in enumerate((4, 4, 8)):
        module = Module(untied)
        adapt(module.model, r=rank, lora_alpha=rank, target_modules=["q_proj"])
        found = describe_checkpoint(save(module, tmp_path / f"{number}.ckpt"))
        signatures.append(found["adapters"]["signature"])
    assert signatures[0] == signatures[1] != signatures[2]


def test_kinds_of_layers(untied, bert_dir, tmp_path):
    module = Module(untied)
    adapt(module.model, r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    module.model.model.embed_tokens = NanoEmbedding(256, 32, 2)
    module.fused = LitQKV(16, 2, 2, 3)
    module.image = nn.Sequential(nn.Conv2d(3, 4, 3))
    adapt(module.image, r=2, target_modules=["0"])
    found = describe_checkpoint(save(module, tmp_path / "a.ckpt"))
    expected = {"linear": 2, "trained whole": 1, "embedding": 1, "fused": 1, "convolution": 1}
    assert found["adapters"]["layers"] == expected
    assert found["adapters"]["ranks"] == {"2": 2, "3": 3, "4": 2}, "one of each part of a fused layer"
    found = describe_checkpoint(save(Classifier(bert_dir), tmp_path / "b.ckpt"))
    assert found["backbones"] == [{"name": "encoder", "class": "BertModel", "model_type": "bert", "layers": 2}]
    assert found["adapters"] is None


def test_other_containers(capsys, untied, tmp_path):
    states = {"a": torch.ones(3), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    weights = {
        "float32": {"tensors": 1, "parameters": 3, "bytes": 12},
        "bfloat16": {"tensors": 1, "parameters": 4, "bytes": 8},
    }
    torch.save(states, tmp_path / "plain.pt")
    torch.save({"state_dict": states, "pytorch-lightning_version": "2.1", "epoch": 1}, tmp_path / "foreign.ckpt")
    save_file(states, tmp_path / "a.safetensors")
    for name, kind in (("plain.pt", "plain"), ("foreign.ckpt", "Lightning"), ("a.safetensors", "plain")):
        found = found_in(capsys, tmp_path / name)
        assert (found["kind"], found["weights"]) == (kind, weights)
        assert found["adapters"] is found["sidecar"] is None
    assert found_in(capsys, untied)["kind"] == "directory"
    model = Module(untied).model
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert found_in(capsys, tmp_path / "shards")["kind"] == "sharded directory"


def test_tied_tensors_count_once(capsys, llama_dir, tmp_path):
    module = Module(llama_dir)
    found = found_in(capsys, save(module, tmp_path / "a.ckpt"))
    assert found["weights"]["float32"]["parameters"] == sum(p.numel() for p in module.parameters())


def test_the_table_says_the_same(capsys, untied, tmp_path):
    module = Module(untied)
    adapt(module.model, r=4, lora_alpha=2, target_modules=["q_proj"])
    assert run(["inspect", "checkpoint", str(save(module, tmp_path / "a.ckpt"))]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "universal",
        "tests.models.checkpoints.Module",
        "LlamaForCausalLM (llama), 2 layers",
        "2 linear; rank 4 on 2; scale 0.5 on 2; signature ",
        "exact, ",
        "of 1 process ",
        "hyperparameter model",
    ):
        assert words in shown


def test_damage_is_one_line(capsys, untied, tmp_path):
    path = save(Module(untied), tmp_path / "a.ckpt")
    path.write_bytes(path.read_bytes()[:-5000])
    one_line(capsys, 1, ["inspect", "checkpoint", str(path)], "a.ckpt", "cannot be read")
    one_line(capsys, 1, ["inspect", "checkpoint", str(tmp_path / "none.ckpt")], "does not exist")
    (tmp_path / "empty").mkdir()
    one_line(capsys, 1, ["inspect", "checkpoint", str(tmp_path / "empty")], "no weight file")
    one_line(capsys, 2, ["inspect", "chekpoint", "x"], "Did you mean 'inspect checkpoint'?")
    one_line(capsys, 2, ["inspect", "checkpoint", "x", "--jsn"], "Did you mean 'json'?")


_MEASURE = """
import sys
from pathlib import Path
from lit_wsl.models.describe import describe_checkpoint
def peak():
    status = Path("/proc/self/status").read_text()
    return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
before = peak()
describe_checkpoint(sys.argv[1])
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_tensors_are_not_read(tmp_path):
    torch.save({f"w{i}": torch.ones(1 << 20) for i in range(32)}, tmp_path / "a.pt")
    command = [sys.executable, "-c", _MEASURE, tmp_path / "a.pt"]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < 30e6, "the file has 134 MB, and its pages count once they are touched"
