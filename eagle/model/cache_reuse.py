"""What one call leaves for the next: a conversation's keys and values, or buffers without content to fill anew.

Turns of a chat repeat their history: a `Prefix` keeps the keys and values of the last call, so that the next one runs
only what is new. A `CachePool` keeps buffers alone, which saves allocating them. One call at a time has either: a
second call meanwhile finds nothing and starts afresh, and so does one after a call that failed.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch

from eagle.model.draft_state import DraftState
from eagle.model.drafter import Drafter
from eagle.model.kv_cache import KVCache
from eagle.model.support.properties import RopeSwitch
from eagle.model.target import TargetModel


@dataclass(frozen=True)
class CachedPrefix:
    """Caches of one finished or abandoned call of one row.

    Attributes:
        ids: the tokens whose keys the target's cache holds; the last emitted token is never among them.
        target, drafter: whose caches they are.
        cache: the target's.
        draft_state: the head's; None after plain decoding.
    """

    ids: list[int]
    target: TargetModel
    cache: KVCache
    drafter: Drafter | None
    draft_state: DraftState | None

    def shared(self, ids: Sequence[int], switch: RopeSwitch | None) -> int:
        """Return how many entries of both caches serve a prompt of these ids.

        With m shared tokens that is min(m, S) - 1: entry t of the head pairs feature t with token t + 1, so entry
        m - 1 is stale, and the last prompt token must run, because its logits pick the first new one.
        """
        # Beyond a rotary switch keys depend on how long the sequence was when they were made.
        if switch is not None and max(len(ids), len(self.ids)) > switch.position:
            return 0
        same = takewhile(lambda pair: pair[0] == pair[1], zip(ids, self.ids, strict=False))
        return max(0, sum(1 for _ in same) - 1)


def _circumstances(target: TargetModel) -> tuple[Any, ...]:
    """Return what must be the same for old keys to stand beside new ones: dtype, device, autocast."""
    kind = target.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return target.model.dtype, target.device, autocast


class Prefix:
    """One conversation's caches, handed from call to call.

    Pass the same object as `reuse_prefix` to every call of a conversation. Only calls of one unpadded row can use it.
    """

    def __init__(self) -> None:
        self._left: CachedPrefix | None = None
        self._made: tuple[Any, ...] = ()
        self._turn = 0  # calls that have taken; only the newest may leave something
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return how many tokens are held."""
        return len(self._left.ids) if self._left is not None else 0

    def __reduce__(self) -> tuple[type["Prefix"], tuple[()]]:
        """Copy and pickle as an empty one."""
        return Prefix, ()

    def take(self, target: TargetModel, drafter: Drafter | None) -> tuple[int, CachedPrefix | None]:
        """Empty the prefix; return the number of this turn, and what was held if target and drafter can use it."""
        with self._lock:
            left, self._left = self._left, None
            self._turn += 1
            turn, made = self._turn, self._made
        if left is None or left.target is not target or (drafter is not None and left.drafter is not drafter):
            return turn, None
        return turn, left if made == _circumstances(target) else None

    def leave(self, left: CachedPrefix, turn: int) -> None:
        """Keep what a call left behind, unless a newer one has begun."""
        with self._lock:
            if turn == self._turn:
                self._left, self._made = left, _circumstances(left.target)

    def clear(self) -> None:
        """Free the memory."""
        with self._lock:
            self._left = None


class CachePool:
    """Keeps at most one cache of each name, from a call that has ended normally for the next one to fill anew."""

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
