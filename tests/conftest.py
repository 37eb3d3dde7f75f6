"""Every test starts from the same seed, offline, on one core per worker."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch


@pytest.fixture(autouse=True)
def _pinned_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)
