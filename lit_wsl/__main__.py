"""``python -m lit_wsl`` is the console script."""

from lit_wsl.cli.main import entry

if __name__ == "__main__":
    entry()
