import json

import pytest
import torch

from lit_wsl.errors import ConfigError, DataError
from lit_wsl.training.rows import read_rows
from lit_wsl.training.text import LengthBatches, TextClassificationData


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x", "label": "y"}\n{"text": "x"\n', "line 2: no JSON"),
        ("a.jsonl", '{"text": "x"}\n', "line 1: no 'label'"),
        ("a.jsonl", '\n["x", "y"]\n', "line 2: expected an object"),
        ("a.jsonl", '{"text": " ", "label": "y"}\n', "line 1: 'text' must be a non-empty text"),
        ("a.jsonl", '{"text": ["x"], "label": "y"}\n', "line 1: 'text' must be a non-empty text"),
        ("a.jsonl", '{"text": "\\ud800", "label": "y"}\n', "line 1: 'text' has half of a surrogate pair"),
        ("a.csv", "text,label\nx,y\nz\n", "line 3: no 'label'"),
        ("a.csv", "sentence,label\nx,y\n", "line 2: no 'text'"),
        ("a.csv", 'text,label\n"x"z,y\n', "line 2: no CSV"),
        ("a.parquet", "", r"expected a \.csv or \.jsonl"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        list(read_rows(path))
    assert str(path) in str(caught.value)


def test_no_text_encoding(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "caf\u00e9", "label": "y"}'.encode("latin-1"))
    with pytest.raises(DataError, match="no UTF-8"):
        list(read_rows(path))


def test_csv_and_jsonl_give_the_same_rows(tmp_path):
    (tmp_path / "a.csv").write_text('\ufefftext,label,other\n"two, words",1,z\n', encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('\ufeff{"text": "two, words", "label": 1}\n', encoding="utf-8")
    csv_row, jsonl_row = next(read_rows(tmp_path / "a.csv")), next(read_rows(tmp_path / "a.jsonl"))
    assert csv_row[1:] == jsonl_row[1:] == ("two, words", "1")


def test_an_unknown_label_is_named(tmp_path, bert_dir):
    (tmp_path / "a.jsonl").write_text('{"text": "film", "label": "positiv"}\n')
    data = TextClassificationData(str(bert_dir), train_file=tmp_path / "a.jsonl", labels=["negative", "positive"])
    with pytest.raises(DataError, match=r"a\.jsonl, line 1: unknown label 'positiv'. Did you mean 'positive'"):
        data.setup("fit")


def test_an_unknown_task_suggests_the_nearest(bert_dir):
    with pytest.raises(ConfigError, match="Did you mean 'sentiment'"):
        _ = TextClassificationData(str(bert_dir), task="sentimant").labels


@pytest.mark.parametrize("listing", ["[]", "{", '{"prompts": ["a"]}', '{"labels": "ab"}'])
def test_a_damaged_listing(tmp_path, bert_dir, listing):
    (tmp_path / "task.json").write_text(listing)
    with pytest.raises(DataError, match="task.json"):
        _ = TextClassificationData(str(bert_dir), task=str(tmp_path)).labels


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"task": "intent", "train_file": "a.csv"},
        {"task": "intent", "batch_size": 0},
        {"task": "a", "limit_train": 0},
        {"task": "a", "num_workers": -1},
    ],
)
def test_arguments_are_checked(bert_dir, arguments):
    with pytest.raises(ConfigError, match="must hold|Give either"):
        TextClassificationData(str(bert_dir), **arguments)


def test_a_label_stands_once(bert_dir, opinions):
    data = TextClassificationData(str(bert_dir), train_file=opinions / "train.jsonl", labels=["negative", "negative"])
    with pytest.raises(ConfigError, match="'negative' stands twice"):
        _ = data.labels


def test_prompts_must_match_labels(bert_dir, opinions):
    with pytest.raises(ConfigError, match="2 labels need as many prompts, got 3"):
        _ = TextClassificationData(str(bert_dir), task=str(opinions), prompts=["a", "b", "c"]).prompts


def test_a_split_that_was_not_given(bert_dir, opinions):
    data = TextClassificationData(str(bert_dir), train_file=opinions / "train.jsonl")
    with pytest.raises(ConfigError, match="test_file"):
        data.test_dataloader()
    assert data.val_dataloader() == []  # so that `fit` needs none


def test_classes_come_from_the_listing_or_the_training_file(bert_dir, opinions):
    listed = TextClassificationData(str(bert_dir), task=str(opinions))
    assert (listed.labels, listed.prompts) == (["negative", "positive"], ["bad poor film", "good fine film"])
    from_file = TextClassificationData(str(bert_dir), train_file=opinions / "train.jsonl")
    assert (from_file.labels, from_file.prompts) == (["negative", "positive"], None)


def test_a_json_file_lists_files_beside_it(bert_dir, opinions, tmp_path):
    listing = {"labels": ["positive", "negative"], **{s: str(opinions / f"{s}.jsonl") for s in ("train", "test")}}
    (tmp_path / "mine.json").write_text(json.dumps(listing))
    data = TextClassificationData(str(bert_dir), task=str(tmp_path / "mine.json"))
    assert data.size("train") == 48
    assert data.labels == ["positive", "negative"]


def test_batches_hold_every_row_once_and_pad_to_the_longest(bert_dir, opinions):
    data = TextClassificationData(str(bert_dir), task=str(opinions), batch_size=7)
    batches = list(data.train_dataloader())
    assert sum(len(batch["labels"]) for batch in batches) == data.size("train") == 48
    assert sum(int(batch["labels"].sum()) for batch in batches) == 24
    for batch in batches:
        assert batch["attention_mask"].sum(dim=1).max() == batch["input_ids"].shape[1]
        assert batch["input_ids"][batch["attention_mask"] == 0].eq(0).all()


def test_order_depends_on_seed_and_epoch_alone(bert_dir, opinions):
    def epochs(seed):
        loader = TextClassificationData(str(bert_dir), task=str(opinions), batch_size=8, seed=seed).train_dataloader()
        return [torch.cat([batch["input_ids"].flatten() for batch in loader]).tolist() for _ in range(2)]

    assert epochs(3) == epochs(3)
    assert epochs(3) != epochs(4)
    assert epochs(3)[0] != epochs(3)[1]


def test_length_batches_are_a_permutation_with_little_padding():
    lengths = torch.randint(1, 50, (1000,)).tolist()
    batches = list(LengthBatches(lengths, 32, torch.Generator().manual_seed(0)))
    assert sorted(index for batch in batches for index in batch) == list(range(1000))
    assert len(batches) == len(LengthBatches(lengths, 32, torch.Generator())) == 32
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    assert padded < 1.15 * sum(lengths)


def test_training_rows_can_be_limited_and_long_texts_are_cut(bert_dir, opinions):
    data = TextClassificationData(str(bert_dir), task=str(opinions), limit_train=5, max_length=4)
    assert data.size("train") == 5
    assert data.size("test") == 16
    assert next(iter(data.train_dataloader()))["input_ids"].shape[1] == 4
