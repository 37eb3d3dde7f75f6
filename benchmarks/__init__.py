"""Measurements against the libraries of the field, one script a subject."""
