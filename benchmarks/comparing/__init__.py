"""Parts of the benchmark of comparing models."""
