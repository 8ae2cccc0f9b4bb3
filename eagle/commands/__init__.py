"""What the commands of `eagle` are called, take and say of themselves; their work stands in the modules they name."""
