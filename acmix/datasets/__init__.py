"""Where images come from: one kind of data set a file."""
