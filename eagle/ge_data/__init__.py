"""Features of a frozen target on disk, for training without it."""
