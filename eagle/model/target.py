"""The target: an unmodified Hugging Face causal LM, driven from outside.

Owns the forward over prompts and trees, the masks that carry the tree, and the taps that yield features. Nothing of
ours stays on the base model between forwards: taps live for one forward, under a lock shared by everything that uses
the same base model.

Shapes: B batch, S prompt tokens, N tree nodes, V vocabulary, F feature width, C cache slots.
"""

import inspect
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import transformers
from torch import nn

from eagle.model.configs import text_config
from eagle.model.kv_cache import BaseKVCache, KVCache
from eagle.model.support.adapters import causal_lm
from eagle.model.support.output_transform import transform_of, transformed
from eagle.model.support.prepack import PrepackedLinears, packed_forward
from eagle.model.support.properties import (
    LayerMask,
    cache_keyword,
    check_target,
    decoder,
    generate_forgets,
    last_position,
    layer_masks,
    rope_switch,
)
from eagle.model.tree import DraftTree

logger = logging.getLogger(__name__)

# Only the first chunk keeps the causal kernel: attention of later ones needs a mask.
PREFILL_CHUNK = 8192
_LOCKS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()

# Decoder layers whose inputs are the features (EAGLE-3; their number means the last one's output), "last" for the
# output of the final norm (EAGLE-1/2), or None for no features (plain decoding).
Taps = tuple[int, ...] | str | None


@dataclass(frozen=True)
class TargetOutput:
    """Logits [B, N, V] in the model's dtype and features [B, N, F] (None without taps)."""

    logits_BNV: torch.Tensor
    features_BNF: torch.Tensor | None


class TargetModel:
    """Prefill and verification on a base model that stays as it is.

    Args:
        model: any `AutoModelForCausalLM` with softmax attention and explicit positions, or a PEFT wrapper of one.

    Raises:
        NotImplementedError: a tree cannot be verified exactly on this model; the message names the property.
    """

    def __init__(self, model: Any) -> None:
        model = causal_lm(model)
        check_target(model)
        self.model = model
        self.config = text_config(model.config)
        self.decoder = decoder(model)
        self.layers = self.decoder.layers
        # Some layers attend twice and keep two caches.
        self.cached_layers = max(len(self.layers), getattr(self.config, "num_hidden_layers", 0))
        self.rope_switch = rope_switch(model)
        self.last_position = last_position(model)
        self._has_told_of_switch = False
        self.packed: PrepackedLinears | None = None
        self.logit_transform = transform_of(self.config)
        self.cache_keyword = cache_keyword(model)
        self._masks = layer_masks(self.config)
        # Layers that share keys and values may run on the positions whose logits are kept alone, and so do the taps.
        self._slices_layers = bool(getattr(self.config, "num_kv_shared_layers", 0))
        self._keeps_logits = "logits_to_keep" in inspect.signature(type(model).forward).parameters

    @property
    def lock(self) -> Any:
        """The lock of everything that uses this base model."""
        return _LOCKS.setdefault(self.model, threading.RLock())

    @property
    def device(self) -> torch.device:
        """Where ids go in and logits come out."""
        # accelerate's hooks know; under offload the weights themselves are on meta.
        for module in (self.model, self.model.get_input_embeddings()):
            hook = getattr(module, "_hf_hook", None)
            for part in getattr(hook, "hooks", (hook,)):
                if (place := getattr(part, "execution_device", None)) is not None:
                    return torch.device(place)
        return torch.device(self.model.device)

    @property
    def vocabulary(self) -> int:
        """Width of the logits."""
        return int(self.config.vocab_size)

    @property
    def known_tokens(self) -> int:
        """Rows of the input embeddings, whatever an adapter or a quantiser made of them."""
        table = self.model.get_input_embeddings()
        rows = getattr(table, "num_embeddings", None)
        return int(rows if rows is not None else table.weight.shape[0])

    def tell_of_switch(self) -> None:
        """Say, the first time a call crosses the rotary switch, if `generate` loses the prompt there."""
        switch = self.rope_switch
        if switch is None or self._has_told_of_switch:
            return
        self._has_told_of_switch = True
        if generate_forgets(self.model, switch):
            logger.warning(
                "a sequence grew beyond %d tokens, where generate of transformers %s forgets all but the newest token "
                "of %s; eagle runs the whole sequence, so its ids are the model's own and not that generate's",
                switch.position,
                transformers.__version__,
                type(self.model).__name__,
            )

    def new_cache(self, batch: int, capacity: int, pads: Sequence[int]) -> KVCache:
        """Return an empty cache for this model."""
        return KVCache(self.cached_layers, batch, capacity, pads)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the input embeddings of token ids."""
        return self.model.get_input_embeddings()(ids)

    def output_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply the target's output matrix and its logit scale or soft-cap to hidden states after the final norm."""
        matrix = self.model.get_output_embeddings()
        with packed_forward(self.packed, matrix):
            return transformed(matrix(hidden), self.logit_transform)

    @torch.no_grad()
    def prefill(
        self,
        ids_BS: torch.Tensor,
        attention_mask_BS: torch.Tensor | None,
        cache: BaseKVCache,
        taps: Taps,
        chunk: int = PREFILL_CHUNK,
    ) -> Iterator[tuple[int, TargetOutput]]:
        """Run the prompt in chunks; yield every chunk's first position and its output, committed already.

        Logits are those of the chunk's last position alone, where the model can leave out the others.

        Args:
            ids_BS: prompt ids, left-padded.
            attention_mask_BS: 1 for tokens, 0 for pads; None without pads.
            cache: holds the first tokens of every row already, often none; grows to S.
            taps: which features to hand out.
            chunk: tokens per forward. Ignored where the rotary embedding depends on the whole forward.
        """
        batch, prompt = ids_BS.shape
        if self.rope_switch is not None:
            chunk = prompt
        first = max(cache.lengths)
        if attention_mask_BS is None:
            positions_BS = torch.arange(prompt, device=ids_BS.device).expand(batch, -1)
        else:
            positions_BS = (attention_mask_BS.long().cumsum(-1) - 1).clamp(min=0)
        for start in range(first, prompt, chunk):
            end = min(start + chunk, prompt)
            output = self._forward(
                ids_BS[:, start:end],
                None if attention_mask_BS is None else attention_mask_BS[:, :end],
                positions_BS[:, start:end],
                cache,
                taps,
                last_only=True,
            )
            cache.advance([end - start] * batch)
            yield start, output
            del output  # the next forward needs the memory

    def prefill_logits(
        self, ids_BS: torch.Tensor, attention_mask_BS: torch.Tensor | None, cache: BaseKVCache
    ) -> torch.Tensor:
        """Run the prompt and return the logits [B, V] of its last position; arguments as in `prefill`."""
        for _, output in self.prefill(ids_BS, attention_mask_BS, cache, None):
            last_BV = output.logits_BNV[:, -1]
            del output
        return last_BV

    @torch.no_grad()
    def verify(self, tree: DraftTree, cache: BaseKVCache, taps: Taps) -> TargetOutput:
        """Run all nodes of the tree in one forward; the cache is written, not committed.

        Raises:
            ValueError: the tree is larger than a target that counts slots allows.
        """
        most = self.rope_switch.nodes if self.rope_switch is not None else None
        if most is not None and tree.size > most:
            raise ValueError(f"total_token={tree.size} must be at most {most} on {type(self.model).__name__}")
        positions_BN = cache.positions_at(tree.depths_BN)
        mask: Any
        if tree.size == 1 and cache.is_uniform:
            # Plain decoding keeps the model's own mask and with it the fast attention kernel.
            mask = self._padding_mask(cache) if cache.has_pads else None
        else:
            mask = self._tree_masks(tree, cache, positions_BN)
        return self._forward(tree.tokens_BN, mask, positions_BN, cache, taps)

    def _padding_mask(self, cache: BaseKVCache) -> torch.Tensor:
        slots_C = torch.arange(cache.visible(1), device=self.device)
        return (slots_C >= torch.tensor(cache.pads, device=self.device)[:, None]).long()

    def _tree_masks(
        self, tree: DraftTree, cache: BaseKVCache, positions_BN: torch.Tensor
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        longest = cache.reach(tree.levels)
        return self.masks(cache.mask(tree.mask_BNN), positions_BN, lambda: cache.positions(positions_BN), longest)

    def masks(
        self, full_BNC: torch.Tensor, queries_BN: torch.Tensor, keys_BC: Callable[[], torch.Tensor], longest: int
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Return a mask as this model's layers and its attention take it: one, or one per type of layer.

        Args:
            full_BNC: bool, who sees whom where nothing is out of sight.
            queries_BN: positions of the queries.
            keys_BC: gives the positions of the keys; called where a layer's sight is limited.
            longest: no key is farther from a query than this.
        """

        def build(layer: LayerMask) -> torch.Tensor:
            mask_BNC = full_BNC
            # Windows are measured in positions, never slots: siblings share a position.
            if layer.size is not None and longest > layer.size:
                keys_B1C, queries_BN1 = keys_BC()[:, None], queries_BN[..., None]
                if layer.kind == "sliding_attention":
                    mask_BNC = mask_BNC & (queries_BN1 - keys_B1C < layer.size)
                else:
                    mask_BNC = mask_BNC & (queries_BN1 // layer.size == keys_B1C // layer.size)
            return self._for_kernel(mask_BNC[:, None])

        if isinstance(self._masks, LayerMask):
            return build(self._masks)
        return {kind: build(layer) for kind, layer in self._masks.items()}

    def _for_kernel(self, mask: torch.Tensor) -> torch.Tensor:
        # Eager attention adds its mask; a bool one would be added as 0 and 1 and be silently wrong.
        if self.model.config._attn_implementation != "eager":
            return mask
        dtype = self.model.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)

    def _forward(
        self,
        ids_BN: torch.Tensor,
        mask: torch.Tensor | dict[str, torch.Tensor] | None,
        positions_BN: torch.Tensor,
        cache: BaseKVCache,
        taps: Taps,
        last_only: bool = False,
    ) -> TargetOutput:
        extra = self.without_logits(taps) if last_only else {}
        with self.tapped(taps) as caught, packed_forward(self.packed):
            output = self.model(
                input_ids=ids_BN,
                attention_mask=mask,
                position_ids=positions_BN,
                use_cache=True,
                **{self.cache_keyword: cache},
                **extra,
            )
        features_BNF = self.joined(caught, taps) if taps is not None else None
        if features_BNF is not None and features_BNF.shape[:2] != ids_BN.shape:
            raise RuntimeError(f"features of shape {tuple(features_BNF.shape)} for ids of shape {tuple(ids_BN.shape)}")
        return TargetOutput(output.logits, features_BNF)

    def without_logits(self, taps: Taps) -> dict[str, int]:
        """Return the argument of a forward whose logits are not wanted but for the last position."""
        sliced = taps is not None and self._slices_layers
        return {"logits_to_keep": 1} if self._keeps_logits and not sliced else {}

    def joined(self, caught: dict[int, torch.Tensor], taps: Taps) -> torch.Tensor:
        """Return the features [B, N, F] of one tapped forward."""
        wanted = len(taps) if isinstance(taps, tuple) else 1
        if len(caught) != wanted:
            raise RuntimeError(f"{len(caught)} of {wanted} feature taps fired; was the base model compiled before?")
        features = [caught[key].to(self.device) for key in sorted(caught)]
        return features[0] if wanted == 1 else torch.cat(features, -1)

    @contextmanager
    def tapped(self, taps: Taps) -> Iterator[dict[int, torch.Tensor]]:
        """Hook the base model for one forward of this thread, alone; yields the dict that the hooks fill."""
        caught: dict[int, torch.Tensor] = {}
        thread = threading.get_ident()

        def catch_output(module: nn.Module, args: Any, output: Any) -> None:
            if threading.get_ident() == thread:
                caught[0] = output[0]

        def catch_input(index: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
                if threading.get_ident() == thread:
                    caught[index] = args[0] if args else kwargs["hidden_states"]

            return hook

        def catch_last(index: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                if threading.get_ident() == thread:
                    caught[index] = output[0] if isinstance(output, tuple) else output

            return hook

        handles = []
        self.lock.acquire()
        try:
            if taps == "last":
                handles.append(self.decoder.module.register_forward_hook(catch_output))
            for index in taps if isinstance(taps, tuple) else ():
                if index == len(self.layers):
                    handles.append(self.layers[-1].register_forward_hook(catch_last(index)))
                else:
                    handles.append(self.layers[index].register_forward_pre_hook(catch_input(index), with_kwargs=True))
            yield caught
        finally:
            for handle in handles:
                handle.remove()
            self.lock.release()
