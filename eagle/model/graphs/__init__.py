"""The decode step replayed: static cache, static drafting state, the step on device tensors, capture and its pool."""
