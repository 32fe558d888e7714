"""Processes that do the work: the worker on every node, and one housekeeper."""
