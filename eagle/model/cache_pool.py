"""The caches that the last call left, for the next one to fill anew: buffers without content.

One call has them at a time: what is lent is gone from the pool, and comes back only when its call has ended normally.
A second stream meanwhile, or one after a failed or abandoned call, allocates its own.
"""

import threading
from collections.abc import Mapping

from eagle.model.kv_cache import KVCache


class CachePool:
    """Keeps at most one cache of each name."""

    def __init__(self) -> None:
        self._kept: dict[str, KVCache] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["CachePool"], tuple[()]]:
        """Copy and pickle as an empty one."""
        return CachePool, ()

    def __len__(self) -> int:
        """Return how many caches are kept."""
        return len(self._kept)

    @property
    def kept(self) -> list[KVCache]:
        """The caches that wait for a call."""
        return list(self._kept.values())

    def lend(self, name: str, cache: KVCache) -> None:
        """Hand the buffers kept under a name to an empty cache; those that do not fit it are freed as it fills."""
        with self._lock:
            kept = self._kept.pop(name, None)
        if kept is not None and len(kept.layers) == len(cache.layers):
            cache.adopt(kept)

    def keep(self, caches: Mapping[str, KVCache]) -> None:
        """Take the caches of a call that has ended."""
        with self._lock:
            self._kept.update(caches)

    def clear(self) -> None:
        """Free the memory."""
        with self._lock:
            self._kept.clear()
