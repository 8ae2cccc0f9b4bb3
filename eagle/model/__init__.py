"""The decoding core: heads, trees, target, verification and the loop that joins them."""
