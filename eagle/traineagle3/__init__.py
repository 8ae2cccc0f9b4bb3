"""The reference's name for training EAGLE-3 heads; see `eagle.train`."""
