"""Pairs of architectures with the same function and different names, and the true map of each."""
