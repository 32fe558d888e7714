"""Training as an iterator of events: data, optimizer, schedule, loop, checkpoints, traces."""
