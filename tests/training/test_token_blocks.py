import tracemalloc

import pytest
import torch

from lit_wsl.errors import ConfigError, DataError
from lit_wsl.training.token_blocks import TokenBlockData, find_files


@pytest.fixture
def texts(tmp_path):
    for name, text in (("b.md", "second"), ("a.md", "first é"), ("c.txt", "other")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_bytes_of_the_files_in_order_with_a_separator(texts):
    data = TokenBlockData([f"{texts}/*.md"], block_size=4, validation_fraction=0)
    stream = "first é".encode() + b"\0" + b"second"
    assert bytes(data.blocks.flatten().tolist()) == stream[: len(stream) // 4 * 4]
    assert data.largest_id == 0xC3
    assert len(data.val_dataloader()) == 0


def test_a_tokenizer_puts_its_end_between_documents(bert_dir, texts, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bert_dir)
    (texts / "a.md").write_text("good film")
    (texts / "b.md").write_text("bad song")
    with pytest.raises(ConfigError, match="no end-of-text token"):
        TokenBlockData([f"{texts}/*.md"], tokenizer=str(bert_dir), block_size=2).setup()
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    data = TokenBlockData([f"{texts}/*.md"], tokenizer=str(tmp_path / "tokenizer"), block_size=5, validation_fraction=0)
    expected = tokenizer.convert_tokens_to_ids(["good", "film", "[SEP]", "bad", "song"])
    assert data.blocks.tolist() == [expected]


def test_the_last_blocks_are_validation(tmp_path):
    (tmp_path / "text").write_bytes(bytes(range(1, 101)))
    data = TokenBlockData([str(tmp_path / "text")], block_size=5, batch_size=3, validation_fraction=0.2)
    train = torch.cat([batch["input_ids"] for batch in data.train_dataloader()])
    validation = torch.cat([batch["input_ids"] for batch in data.val_dataloader()])
    assert validation.flatten().tolist() == list(range(81, 101))
    assert sorted(train.flatten().tolist()) == list(range(1, 81))
    assert train.flatten().tolist() != list(range(1, 81))
    batch = next(iter(data.val_dataloader()))
    assert torch.equal(batch["input_ids"], batch["labels"])
    assert batch["input_ids"].shape == (3, 5)
    assert batch["input_ids"].dtype == torch.int64


@pytest.mark.parametrize(("fraction", "held_out"), [(0.0, 0), (0.01, 1), (0.1, 3), (0.99, 29)])
def test_training_and_validation_have_a_block_each(tmp_path, fraction, held_out):
    (tmp_path / "text").write_text("x" * 60)
    data = TokenBlockData([str(tmp_path / "text")], block_size=2, batch_size=1, validation_fraction=fraction)
    assert len(data.val_dataloader()) == held_out
    assert len(data.train_dataloader()) == 30 - held_out


def test_files_are_sorted_and_counted_once(texts):
    (texts / "deep").mkdir()
    (texts / "deep" / "d.md").write_text("")
    names = [path.name for path in find_files([f"{texts}/c.txt", f"{texts}/a.md", f"{texts}/**/*.md"])]
    assert names == ["a.md", "b.md", "c.txt", "d.md"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_size": 1}, "block_size >= 2"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"num_workers": -1}, "num_workers >= 0"),
        ({"validation_fraction": 1.0}, "validation_fraction < 1"),
    ],
)
def test_a_broken_law_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        TokenBlockData(["x"], **settings)


def test_what_cannot_be_read_is_named(texts, llama_dir):
    def setup(*files, **settings):
        TokenBlockData(list(files), **settings).setup()

    with pytest.raises(ConfigError, match="at least one file"):
        setup()
    with pytest.raises(DataError, match="rst' matches no file"):
        setup(f"{texts}/*.md", f"{texts}/*.rst")
    (texts / "image.md").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="image.md cannot be read as UTF-8"):
        setup(f"{texts}/image.md")
    with pytest.raises(DataError, match="5 tokens make 1 blocks of 4, and 2 are needed.*smaller `block_size`"):
        setup(f"{texts}/c.txt", block_size=4)
    with pytest.raises(ConfigError, match="has no tokenizer"):
        setup(f"{texts}/c.txt", tokenizer=str(llama_dir))


def test_bytes_become_no_python_numbers(tmp_path):
    """A list of them would take more than twenty times the text."""
    size = 1 << 20
    (tmp_path / "long.txt").write_text("x" * size)
    data = TokenBlockData([str(tmp_path / "long.txt")])
    tracemalloc.start()
    data.setup()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 8 * size
    assert data.blocks.shape == (size // 128, 128)
