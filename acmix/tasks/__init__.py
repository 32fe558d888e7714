"""What a model learns to do: one task a file."""
