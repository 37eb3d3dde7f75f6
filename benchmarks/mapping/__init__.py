"""Parts of the benchmark of the weight mapper."""
