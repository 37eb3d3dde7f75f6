"""Apply a weight map from file to file in a process of its own: its time without imports, on the last line.

python -m benchmarks.mapping.apply MAP SOURCE TARGET
python -m benchmarks.mapping.apply                    # imports alone
"""

import sys
import time
from pathlib import Path

import torch

from lit_wsl.state.reader import open_state
from lit_wsl.state.remap import WeightMap


def main() -> None:
    """Apply and print the seconds."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    if len(sys.argv) > 1:
        recipes, source, target = map(Path, sys.argv[1:])
        WeightMap.load(recipes).write(open_state(source), target)
    print(time.perf_counter() - began)


if __name__ == "__main__":
    main()
