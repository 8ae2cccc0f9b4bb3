"""Memory of a call: the sum of what it should hold, term by term, beside the measured peak.

    eagle memory --base-model-path TARGET --ea-model-path HEAD
    eagle memory --synthetic 850m --dtype bfloat16

Memory before loading, after a call of a tiny pair that loads the libraries' own code, is subtracted: resident memory,
or on a GPU what torch has allocated there. glibc is
told to return what is freed at once: by default its heap keeps blocks of up to 32 MB for later, and the peak would
also count what nobody holds. Terms:

- weights: the target's parameters and buffers, each storage once;
- head: the same of the draft head, without what it shares with the target;
- caches: keys and values of target and head, as they are at the end of the call;
- tree logits: 8·N·V bytes for N nodes and V tokens of vocabulary: what the model returns, and in fp32;
- activations of one prefill chunk, by `activations`.
"""

import ctypes
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from types import SimpleNamespace
from typing import Any

import psutil
import torch

from eagle.commands.memory import COMMAND
from eagle.commands.running import run
from eagle.evaluation.model_meter import PeakMemory
from eagle.evaluation.pairs import (
    at_least,
    check_pair,
    check_prompts,
    check_tree,
    device_of,
    opened,
)
from eagle.evaluation.report import aligned, check_json, write_json
from eagle.model.ea_model import EaModel
from eagle.model.target import PREFILL_CHUNK

M_MMAP_THRESHOLD, LEAST_MAPPED = -3, 1 << 16  # glibc's malloc.h; bytes


@dataclass(frozen=True)
class Use:
    """Bytes by term, and the measured peak over what was there before loading."""

    terms: dict[str, int]
    peak: int

    @property
    def total(self) -> int:
        """Sum of the terms."""
        return sum(self.terms.values())

    @property
    def ratio(self) -> float:
        """Peak over sum."""
        return self.peak / self.total


def size_of(tensors: Iterable[torch.Tensor], besides: Iterable[torch.Tensor] = ()) -> int:
    """Return the bytes of tensors, each storage once, without those that other tensors lie in."""
    known = {tensor.untyped_storage().data_ptr() for tensor in besides}
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(size for place, size in storages.items() if place not in known)


def activations(model: EaModel, rows: int, prompt: int, chunk: int) -> int:
    """Return the bytes that one forward over a chunk of the prompt holds at once at most.

    For T tokens of the chunk, D hidden, I intermediate, H query and G key heads of size E, C tokens so far:

    - T·2D: the residual stream and its normed copy, throughout the layer;
    - the larger of T·3I (the MLP's activated gate, its other half and their product) and of attention: T·(H + 2G)·E
      queries, keys and values, T·(H + G)·E rotated, T·H·E output, and behind a first chunk, where a mask is passed,
      keys and values repeated for all heads, 2·C·H·E, and the mask, T·C as bytes and as numbers; eager attention
      also holds scores and their softmax, T·C·H twice;
    - T·F features for the head, F = D or 3D: those of the chunk before wait while the next one runs; three tapped
      layers' inputs live besides until they are joined.
    """
    config, size = model.target.config, model.dtype.itemsize
    tokens, width = min(chunk, prompt), config.hidden_size
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    head_size = getattr(config, "head_dim", None) or width // heads
    attention = tokens * (3 * heads + 3 * groups) * head_size
    if prompt > chunk:
        attention += 2 * prompt * heads * head_size + tokens * prompt
    if model.base_model.config._attn_implementation == "eager":
        attention += 2 * tokens * prompt * heads
    features = (model.ea_layer.head.config.taps_count if model.use_eagle3 else 1) * width
    waiting = tokens * features * (prompt > chunk)
    tapped = tokens * features * (2 if model.use_eagle3 else 1)
    numbers = tokens * 2 * width + max(3 * tokens * config.intermediate_size, attention) + waiting + tapped
    return int(rows * (numbers * size + tokens * prompt * (prompt > chunk)))


def return_freed_blocks() -> None:
    """Let glibc, where there is one, map every larger block by itself, which ends with the block."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, LEAST_MAPPED)


def measure(args: SimpleNamespace) -> Use:
    """Load the pair, generate once and return what that took."""
    return_freed_blocks()
    tiny = {"synthetic": "tiny", "base_model_path": None, "ea_model_path": None, "draft_vocabulary": None}
    call(SimpleNamespace(**{**vars(args), **tiny, "kind": args.kind if args.synthetic else None}), 64, 8)
    device = device_of(args)
    on_cuda = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if on_cuda else psutil.Process().memory_info().rss
    use, peak = call(args, args.prompt_length, args.new_tokens)
    return Use(use, peak - before)


def call(args: SimpleNamespace, prompt: int, new: int) -> tuple[dict[str, int], int]:
    """Return the terms of one call, and the peak of loading the head and making it."""
    chunk = args.prefill_chunk or PREFILL_CHUNK
    with opened(args) as pair, PeakMemory(pair.base.device) as peak:
        ids_BS = pair.prompts(args, 1, prompt)[0]
        model = pair.model(pair.heads[0], args.total_token, args.depth, args.top_k)
        model.eagenerate(ids_BS, max_new_tokens=new, max_length=prompt + new, prefill_chunk=chunk)
    base, head = tensors_of(model.base_model), tensors_of(model.ea_layer.head)
    caches = [layer for cache in model.pool.kept for layer in cache.layers if layer.is_initialized]
    terms = {
        "weights": size_of(base),
        "head": size_of(head, besides=base),
        "caches": size_of(buffer for layer in caches for buffer in layer.buffers),
        "tree logits": 8 * model.ea_layer.tree.nodes * model.target.vocabulary,
        "activations": activations(model, len(ids_BS), prompt, chunk),
    }
    return terms, peak.bytes


def tensors_of(module: Any) -> list[torch.Tensor]:
    """Return a module's parameters and buffers."""
    return list(chain(module.parameters(), module.buffers()))


def table(use: Use) -> str:
    """Return the terms, their sum and the peak as aligned text."""
    lines = [[name, f"{size / 1e6:.1f}"] for name, size in use.terms.items()]
    lines += [["sum", f"{use.total / 1e6:.1f}"], ["peak", f"{use.peak / 1e6:.1f}"]]
    return aligned(["MB", ""], [*lines, ["peak to sum", f"{use.ratio:.3f}"]])


def check(args: SimpleNamespace) -> None:
    """Check all options before anything is loaded.

    Raises:
        ValueError: naming the option.
    """
    at_least(1, args, "prompt_length", "new_tokens", "prefill_chunk")
    check_pair(args)
    check_prompts(args)
    check_tree([args.total_token], args.depth, args.top_k)
    if args.total_token == -1:
        raise ValueError("--total-token=-1: the sum needs a tree of one size")
    check_json(args)


def work(args: SimpleNamespace) -> int:
    """Measure and report."""
    use = measure(args)
    sys.stdout.write(table(use) + "\n")
    write_json(args, {"terms": use.terms, "sum": use.total, "peak": use.peak, "ratio": use.ratio})
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return run(COMMAND, argv)


if __name__ == "__main__":
    raise SystemExit(main())
