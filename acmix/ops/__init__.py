"""The fast operators of ACmix, each beside a slow and obvious reference."""
