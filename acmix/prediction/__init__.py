"""What a checkpoint's model names in an image."""
