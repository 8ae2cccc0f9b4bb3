"""Training of draft heads: EAGLE-1/2 on features, EAGLE-3 by training-time test."""
