"""The models that layers are swapped in: one family a file."""
