import torch
from torch import nn

from lit_wsl.training.input_gram import InputGrams
from lit_wsl.training.plain_parameters import plain_parameters


def test_mixed_precision_rounds_no_sums():
    layer = nn.Linear(4, 3)
    grams = InputGrams(plain_parameters(layer))
    rows = torch.randn(64, 4)
    grams.attach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(rows)
    grams.detach()
    found = grams.result(lambda total: total)["weight"]
    torch.testing.assert_close(found, rows.T @ rows / 64, rtol=1e-5, atol=1e-6)
