"""Performance, proved: each module prints its figures, paired in one run against what it must be compared with."""
