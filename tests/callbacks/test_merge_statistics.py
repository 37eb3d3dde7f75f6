"""Statistics for merging: closed forms, explicit activations, adapters and their folded copies, any trainer."""

import json
from pathlib import Path

import peft
import pytest
import torch
from lightning.pytorch import LightningModule
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from lit_wsl.callbacks.gathering import gather_statistics
from lit_wsl.callbacks.merge_statistics import MergeStatistics
from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.models.lora import LoraSpec
from lit_wsl.models.universal.api import get_merged_state_dict
from lit_wsl.training.causal_lm import CausalLMModule
from lit_wsl.training.classification import SequenceClassificationModule
from lit_wsl.training.fisher import FisherInformation, examples_of, model_labels
from lit_wsl.training.input_gram import InputGrams
from lit_wsl.training.plain_parameters import plain_parameters
from lit_wsl.training.text import TextClassificationData
from tests.callbacks.foreign import trainer
from tests.callbacks.regression import Logistic, Rows
from tests.merging.build import shake
from tests.processes import run_two_processes

ROOT = Path(__file__).parents[2]


def gather(folder, tuned, data, kind, **options):
    """Tensors and metadata of what is gathered."""
    path = gather_statistics(trainer(folder), tuned, data, folder / "out" / "found.safetensors", kind, **options)
    assert [file.name for file in path.parent.iterdir()] == ["found.safetensors"]
    with safe_open(path, "pt") as file:
        return load_file(path), file.metadata()


def closed_form(module, inputs, labels, of_model):
    """Information of logistic regression: of weight and bias."""
    shares = (inputs.double() @ module.layer.weight.double().T + module.layer.bias.double()).softmax(-1)
    errors = shares * (1 - shares) if of_model else (shares - F.one_hot(labels, shares.shape[1])) ** 2
    return (errors.T @ inputs.double() ** 2 / len(inputs)).float(), errors.mean(0).float()


# Closed forms.


@pytest.mark.parametrize("labels", ["data", "model"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_fisher_of_logistic_regression_has_its_closed_form(tmp_path, labels, split):
    module, data = Logistic(), Rows()
    found, metadata = gather(tmp_path, module, data, "fisher", labels=labels, split=split)
    weight, bias = closed_form(module, *data.part(split == "train"), labels == "model")
    torch.testing.assert_close(found["layer.weight"], weight)
    torch.testing.assert_close(found["layer.bias"], bias)
    assert {key: metadata[key] for key in ("kind", "labels", "examples", "batches", "source")} == {
        "kind": "fisher",
        "labels": labels,
        "examples": "24",
        "batches": "6",
        "source": "Logistic",
    }
    entries = torch.cat([weight.flatten(), bias])
    assert float(metadata["rms"]) == pytest.approx(entries.square().mean().sqrt().item())


def test_fisher_of_many_classes_draws_labels_of_the_model(tmp_path):
    """Drawn labels agree with the closed form in the mean."""
    module, data = Logistic(classes=12), Rows(classes=12, rows=4000, batch_size=500)
    found, _ = gather(tmp_path, module, data, "fisher", labels="model", split="validation", batches=4)
    weight = closed_form(module, *(part[:2000] for part in data.part(False)), True)[0]
    assert torch.linalg.vector_norm(found["layer.weight"] - weight) < 0.2 * torch.linalg.vector_norm(weight)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_gram_is_that_of_the_inputs(tmp_path, split):
    data = Rows()
    found, metadata = gather(tmp_path, Logistic(), data, "gram", split=split)
    inputs = data.part(split == "train")[0].double()
    torch.testing.assert_close(found["layer.weight"], (inputs.T @ inputs / 24).float())
    assert torch.equal(found["layer.weight"], found["layer.weight"].T)
    assert (metadata["kind"], metadata["examples"], metadata["inputs_first"]) == ("gram", "24", "[]")


def test_batches_limit_what_is_seen(tmp_path):
    module, data = Logistic(), Rows()
    found, metadata = gather(tmp_path, module, data, "fisher", split="validation", batches=2)
    assert (metadata["batches"], metadata["examples"]) == ("2", "8")
    first = (part[:8] for part in data.part(False))
    torch.testing.assert_close(found["layer.weight"], closed_form(module, *first, False)[0])


# Adapters.


def text_pair(bert_dir, opinions, lora, head="linear"):
    """A classifier whose adapters do something, and its data."""
    data = TextClassificationData(str(bert_dir), task=str(opinions), batch_size=8)
    torch.manual_seed(4)
    module = SequenceClassificationModule(str(bert_dir), lora, head, labels=data.labels, prompts=data.prompts)
    if lora is not None:
        shake(module)
    return module, data


SPECS = {
    "lora": LoraSpec(rank=3, target_modules=["query", "dense"], dropout=0.3),
    "rslora, embeddings": LoraSpec(rank=2, target_modules=["value", "word_embeddings"], use_rslora=True),
}


@pytest.mark.parametrize("kind", ["fisher", "gram"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_statistics_under_adapters_are_those_of_the_folded_weights(bert_dir, opinions, tmp_path, kind, spec):
    module, data = text_pair(bert_dir, opinions, spec)
    folded, _ = text_pair(bert_dir, opinions, None)
    folded.load_state_dict(get_merged_state_dict(module))
    found, _ = gather(tmp_path, module, data, kind, split="validation")
    expected, _ = gather(tmp_path, folded, data, kind, split="validation")
    assert set(found) < set(expected)
    assert set(found) <= set(folded.encoder.state_dict())
    for name, tensor in found.items():
        assert torch.linalg.vector_norm(tensor - expected[name]) <= 1e-5 * torch.linalg.vector_norm(expected[name]), (
            name
        )


def test_dora_has_gram_matrices_but_no_gradient_of_the_folded_weight(bert_dir, opinions, tmp_path):
    module, data = text_pair(bert_dir, opinions, LoraSpec(rank=2, target_modules=["query"], use_dora=True))
    folded, _ = text_pair(bert_dir, opinions, None)
    folded.load_state_dict(get_merged_state_dict(module))
    found, _ = gather(tmp_path, module, data, "gram")
    expected, _ = gather(tmp_path, folded, data, "gram")
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)
    with pytest.raises(CheckpointError, match=r"query\.weight' is under DoRA"):
        gather_statistics(trainer(tmp_path), module, data, tmp_path / "x.safetensors", "fisher")


def test_padding_has_no_part_in_gram_matrices(bert_dir, opinions):
    module, data = text_pair(bert_dir, opinions, None)
    data.setup("validate")
    texts = data._split("validation")[:6]
    module.eval()

    def gram(*batches):
        grams = InputGrams(plain_parameters(module.encoder))
        grams.attach()
        for batch in batches:
            grams.expect(batch)
            module(batch)
        grams.detach()
        return grams.result(lambda tensor: tensor)

    padded = data.collate([*texts, (texts[0][0] + [5, 6, 7] * 3, 0)])
    padded = {name: tensor[:-1] for name, tensor in padded.items()}
    single = gram(*(data.collate([text]) for text in texts))
    for name, tensor in gram(padded).items():
        torch.testing.assert_close(tensor, single[name], rtol=1e-4, atol=1e-5)
    hidden = module.encoder.embeddings(padded["input_ids"])[padded["attention_mask"].bool()].detach()
    torch.testing.assert_close(
        single["encoder.layer.0.attention.self.query.weight"], hidden.T @ hidden / len(hidden), rtol=1e-4, atol=1e-5
    )


class Gpt2(LightningModule):
    """GPT-2 of a user, whose projections are stored the other way round, and whose output embedding is tied."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.net = GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=16, n_embd=16, n_layer=1, n_head=2))

    def training_step(self, batch, batch_idx):
        return self.net(input_ids=batch, labels=batch).loss

    validation_step = training_step


class Bytes(Rows):
    """Rows of tokens."""

    def loader(self, training, **settings):
        return torch.utils.data.DataLoader(torch.arange(48).view(6, 8) * 5 % 256, batch_size=2, **settings)


def test_projections_stored_the_other_way_round_are_marked(tmp_path):
    module = Gpt2()
    seen = []
    module.net.transformer.h[0].mlp.c_proj.register_forward_pre_hook(lambda layer, args: seen.append(args[0].detach()))
    found, metadata = gather(tmp_path, module, Bytes(), "gram", module="net")
    inputs = torch.cat(seen).flatten(0, 1)
    torch.testing.assert_close(found["transformer.h.0.mlp.c_proj.weight"], inputs.T @ inputs / len(inputs))
    assert set(json.loads(metadata["inputs_first"])) == set(found)
    assert len(found) == 4


def test_a_tied_weight_has_the_squares_of_its_whole_gradient(tmp_path):
    module = Gpt2()
    found, _ = gather(tmp_path, module, Bytes(), "fisher", module="net")
    assert "lm_head.weight" not in found
    expected = torch.zeros_like(module.net.transformer.wte.weight)
    module.eval()
    for row in torch.arange(48).view(6, 8) * 5 % 256:
        module.zero_grad()
        module.training_step(row.unsqueeze(0), 0).backward()
        expected += module.net.transformer.wte.weight.grad**2 / 6
    torch.testing.assert_close(found["transformer.wte.weight"], expected)


# Labels of a language model.


def test_labels_of_a_language_model_are_drawn_where_there_are_labels(untied):
    module = CausalLMModule(str(untied))
    ids = torch.arange(12).view(1, 12)
    labels = ids.clone()
    labels[:, 7:] = -100
    ((share, example),) = model_labels(module, {"input_ids": ids, "labels": labels})
    assert share == 1.0
    assert torch.equal(example["labels"] == -100, labels == -100)
    assert torch.equal(example["input_ids"], ids)
    assert not torch.equal(example["labels"], labels)
    with torch.no_grad():
        module.model.lm_head.weight.zero_()
        module.model.lm_head.weight[9] = 100 * module.model.model(input_ids=ids)[0][0, 3]
    ((_, example),) = model_labels(module, {"input_ids": ids, "labels": labels})
    assert example["labels"][0, 4] == 9  # the answer of position 3


# A module stays as it is.


@pytest.mark.parametrize("kind", ["fisher", "gram"])
def test_the_module_stays_as_it_is(bert_dir, opinions, tmp_path, kind):
    module, data = text_pair(bert_dir, opinions, SPECS["lora"])
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    trains = [parameter.requires_grad for parameter in module.parameters()]
    kept = set(vars(data))
    gather(tmp_path, module, data, kind)
    assert trains == [parameter.requires_grad for parameter in module.parameters()]
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in before.items())
    assert not any(layer._forward_pre_hooks for layer in module.modules())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert "log" not in vars(module)
    assert "setup" not in vars(data)
    assert "val_dataloader" not in vars(data)
    assert kept <= set(vars(data))


def test_the_callback_works_beside_any_evaluation(tmp_path):
    module, data = Logistic(), Rows()
    for run in ("validate", "test"):
        callback = MergeStatistics(tmp_path / f"{run}.safetensors")
        runner = trainer(tmp_path, callback)
        logged = getattr(runner, run)(module, data, verbose=False)
        assert not any("train" in name for name in logged[0])
    weight = closed_form(module, *data.part(False), False)[0]
    for run in ("validate", "test"):
        torch.testing.assert_close(load_file(tmp_path / f"{run}.safetensors")["layer.weight"], weight)


def test_gathering_again_starts_anew_and_leaves_the_trainer(tmp_path):
    module, data, runner = Logistic(), Rows(), trainer(tmp_path)
    before = list(runner.callbacks), runner.limit_val_batches
    paths = [
        gather_statistics(runner, module, data, tmp_path / f"{n}.safetensors", "gram", batches=n) for n in (1, 6, 6)
    ]
    assert paths[1].read_bytes() == paths[2].read_bytes()
    assert (list(runner.callbacks), runner.limit_val_batches) == before


def test_two_processes_gather_what_one_does(tmp_path):
    run_two_processes("tests.callbacks.statistics_processes", tmp_path)
    for kind in ("fisher", "gram"):
        expected, metadata = gather(tmp_path / "one", Logistic(), Rows(), kind)
        for name, tensor in load_file(tmp_path / f"{kind}.safetensors").items():
            torch.testing.assert_close(tensor, expected[name])
        with safe_open(tmp_path / f"{kind}.safetensors", "pt") as file:
            assert file.metadata()["examples"] == metadata["examples"] == "24"


# Refusals.


def test_what_cannot_be_gathered_is_refused_in_one_line(tmp_path):
    module, data = Logistic(), Rows()
    path = tmp_path / "x.safetensors"

    def refusal(kind="fisher", module=module, data=data, path=path, **options):
        with pytest.raises((ConfigError, CheckpointError)) as error:
            gather_statistics(trainer(tmp_path), module, data, path, kind, **options)
        assert "\n" not in str(error.value)
        assert not any(file.suffix == ".safetensors" for file in tmp_path.rglob("*"))
        return str(error.value)

    assert "`batches >= 1` must hold, got 0" in refusal(batches=0)
    assert "`split` must be one of train, validation, test" in refusal(split="rest")
    assert "end `output` in .safetensors" in refusal(path=tmp_path / "x.pt")
    (tmp_path / "file").write_text("")
    assert "cannot be used" in refusal(path=tmp_path / "file" / "x.safetensors")
    manual = Logistic()
    manual.automatic_optimization = False
    assert "optimises by itself" in refusal(module=manual)
    silent = Logistic()
    silent.training_step = lambda batch: None
    assert "returns no loss" in refusal(module=silent)
    assert "needs batches that are mappings with `labels`" in refusal(module=Gpt2(), data=Bytes(), labels="model")
    damaged = Logistic()
    damaged.layer.bias.data[0] = float("nan")
    assert "not finite" in refusal(module=damaged)
    with pytest.raises(ConfigError, match="No batch of the train rows was seen"):
        gather_statistics(trainer(tmp_path, limit_val_batches=0), module, data, path, "gram")
    with pytest.raises(ConfigError, match="has no module 'encoder'"):
        gather_statistics(trainer(tmp_path), module, data, path, "gram", module="encoder")
    with pytest.raises(ConfigError, match="works beside `validate` and `test`"):
        trainer(tmp_path, MergeStatistics(path)).fit(module, data)


def test_an_error_in_the_middle_leaves_no_hook_and_no_file(tmp_path):
    module, data = Logistic(), Rows()

    def fail(batch, batch_idx):
        raise RuntimeError("stop")

    module.validation_step = fail
    for kind in ("fisher", "gram"):
        with pytest.raises(RuntimeError, match="stop"):
            gather_statistics(trainer(tmp_path), module, data, tmp_path / "x.safetensors", kind)
    assert not module.layer._forward_pre_hooks
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_batch_is_split_into_examples():
    batch = {"ids": torch.arange(6).view(3, 2), "more": [torch.arange(3)], "scale": torch.tensor(2.0), "name": "x"}
    examples = examples_of(batch)
    assert len(examples) == 3
    assert torch.equal(examples[1]["ids"], torch.tensor([[2, 3]]))
    assert torch.equal(examples[1]["more"][0], torch.tensor([1]))
    assert (examples[1]["scale"].item(), examples[1]["name"]) == (2.0, "x")
    for bad in ({"a": torch.ones(2), "b": torch.ones(3)}, {"a": torch.tensor(1.0)}, "text"):
        with pytest.raises(ConfigError, match="first dimension"):
            examples_of(bad)


def test_each_example_has_the_images_of_its_row():
    """Two rows and two images, both of the first row: the first dimensions agree by chance."""
    tokens = {name: torch.arange(4).view(2, 2) for name in ("input_ids", "labels")}
    images = {"pixel_values": torch.arange(2.0).view(2, 1, 1, 1, 1), "image_sizes": torch.ones(2, 2)}
    first, second = examples_of({**tokens, **images, "batch_num_images": torch.tensor([2, 0])})
    assert first["pixel_values"].flatten().tolist() == [0.0, 1.0]
    assert (first["input_ids"].tolist(), first["batch_num_images"].tolist()) == ([[0, 1]], [2])
    assert "pixel_values" not in second
    assert second["input_ids"].tolist() == [[2, 3]]


def test_labels_of_the_model_need_logits_of_classes():
    class Tokens(Logistic):
        def forward(self, batch):
            return super().forward(batch).unsqueeze(1)

    batch = {"inputs": torch.ones(1, 5), "labels": torch.zeros(1, dtype=torch.long)}
    with pytest.raises(ConfigError, match="needs logits of shape"):
        next(model_labels(Tokens(), batch))


def test_peft_models_gather_under_the_names_of_their_base(bert_dir, opinions, tmp_path):
    """The module wraps a `PeftModel`; the names are those of the plain one."""
    module, data = text_pair(bert_dir, opinions, None)
    names = set(module.encoder.state_dict())
    module.encoder = peft.get_peft_model(module.encoder, peft.LoraConfig(target_modules=["query"], r=2))
    parameters = plain_parameters(module.encoder)
    assert {p.name for p in parameters} <= names
    assert all("query" in p.name for p in parameters)
    information = FisherInformation(module, parameters)
    data.setup("validate")
    information.add(next(iter(data.val_dataloader())))
    assert all(t.sum() > 0 for n, t in information.result(lambda t: t, 8).items() if n.endswith("weight"))
