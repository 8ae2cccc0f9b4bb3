"""The head in a checkpoint, taken out without training: whoever saved it, in parts or whole."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import merge_fsdp_weights
from safetensors.torch import load_file

from eagle.model.dialects.fields import head_config_from
from eagle.model.head import DraftHead, Eagle3Head, EagleHead
from eagle.train.checkpoints import RUN, RunPoint, document, whole
from eagle.train.export import Origin, write_card, write_head

State = dict[str, torch.Tensor]


def export(place: Path, out: Path, dtype: str | None = None) -> RunPoint:
    """Write the head of a checkpoint, and its card, as a run does at its end.

    Args:
        place: folder of a checkpoint; or of a run, which means its last one.
        out: where the head goes.
        dtype: of the head; None means what the run was told.

    Returns:
        where the run stood.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is damaged, or from before a checkpoint said what its head is.
        ImportError: it is DeepSpeed's, which is not installed.
    """
    place = _checkpoint(place)
    try:
        saved = document(place)
        state = _state(place)
    except (ValueError, OSError, RuntimeError, KeyError) as problem:
        raise ValueError(f"{place} is damaged ({str(problem).partition(chr(10))[0]})") from problem
    if saved.get("origin") is None:
        raise ValueError(f"{place} was saved before checkpoints said what their head is: go on with its run instead")
    origin = Origin(**saved["origin"])
    if dtype is not None:
        origin = replace(origin, dtype=dtype)
    # The head of this step, not the best one before it.
    point = replace(RunPoint(**saved["point"]), best_tau=None, best_step=None)
    head = _empty(origin, str(place))
    out.mkdir(parents=True, exist_ok=True)
    made = out / "exported"
    write_head(head, state, made, origin.torch_dtype)
    for file in made.iterdir():
        file.replace(out / file.name)
    made.rmdir()
    write_card(out, head, origin, point)
    return point


def _checkpoint(place: Path) -> Path:
    if (place / RUN).is_file():
        return place
    if places := whole(place):
        return places[-1]
    raise FileNotFoundError(f"{place} holds no checkpoint, which is a folder with a {RUN}, nor checkpoints of a run")


def _empty(origin: Origin, named: str) -> DraftHead:
    with torch.device("meta"):
        config = head_config_from(json.loads(json.dumps(origin.config)), named)
        return EagleHead(config) if origin.kind == "eagle" else Eagle3Head(config)


def _state(place: Path) -> State:
    """Return the weights of a recipe, gathered by the library that has divided them."""
    readers: dict[str, Callable[[Path], State]] = {
        "model.safetensors": lambda path: load_file(path),
        "pytorch_model_fsdp_0": _of_fsdp,
        "pytorch_model": _of_deepspeed,
    }
    for name, read in readers.items():
        if (place / name).exists():
            return read(place / name)
    raise FileNotFoundError("it holds no weights")


def _of_fsdp(path: Path) -> State:
    with tempfile.TemporaryDirectory() as folder:
        merge_fsdp_weights(str(path), folder)
        return load_file(Path(folder) / "model.safetensors")


def _of_deepspeed(path: Path) -> State:
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    except ImportError as missing:
        raise ImportError("a checkpoint of DeepSpeed's: pip install 'eagle-decoding[train]'") from missing
    state: dict[str, Any] = get_fp32_state_dict_from_zero_checkpoint(str(path.parent), tag=path.name)
    return state
