import lightning
import pytest

from lit_wsl.callbacks.save_adapter import SaveAdapter
from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.models.lora import LoraSpec
from lit_wsl.training.classification import SequenceClassificationModule
from lit_wsl.training.text import TextClassificationData


def _trainer(tmp_path, **settings):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return lightning.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, enable_model_summary=False, **(quiet | settings)
    )


def _pair(bert_dir, opinions, lora):
    data = TextClassificationData(str(bert_dir), task=str(opinions), batch_size=8)
    return SequenceClassificationModule(str(bert_dir), lora, labels=data.labels, prompts=data.prompts), data


def test_the_callback_refuses_a_foreign_module_before_training(tmp_path):
    from lightning.pytorch.demos.boring_classes import BoringModel

    trainer = _trainer(tmp_path, max_epochs=1, callbacks=[SaveAdapter(tmp_path / "out")])
    with pytest.raises(ConfigError, match="BoringModel has no `save_pretrained`"):
        trainer.fit(BoringModel())


def test_a_directory_that_cannot_be_written_shows_before_training(bert_dir, opinions, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("mine")
    module, data = _pair(bert_dir, opinions, LoraSpec(rank=2))
    trainer = _trainer(tmp_path, max_epochs=1, callbacks=[SaveAdapter(tmp_path / "out")])
    with pytest.raises(CheckpointError, match="not written by lit-wsl"):
        trainer.fit(module, data)
    assert trainer.global_step == 0


def test_a_trial_run_leaves_the_adapter_alone(bert_dir, opinions, tmp_path):
    module, data = _pair(bert_dir, opinions, LoraSpec(rank=2))
    _trainer(tmp_path, fast_dev_run=True, callbacks=[SaveAdapter(tmp_path / "out")]).fit(module, data)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_adapters_that_fit_no_base_are_refused_before_training(bert_dir, opinions, tmp_path, init):
    module, data = _pair(bert_dir, opinions, LoraSpec(rank=2, init_lora_weights=init))
    trainer = _trainer(tmp_path, max_epochs=1, callbacks=[SaveAdapter(tmp_path / "out")])
    with pytest.raises(CheckpointError, match="lit-wsl export CKPT --format hf"):
        trainer.fit(module, data)
    assert trainer.global_step == 0
    _trainer(tmp_path, callbacks=[SaveAdapter(tmp_path / "out")]).validate(module, data, verbose=False)
