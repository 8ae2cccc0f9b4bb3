"""Files of head checkpoints: found in a folder or on the Hub, and read without running anything that is in them.

What is wrong with a file is said with its name, in words: damaged downloads, pickles of something else than tensors,
kinds of numbers that a head cannot compute with. Sizes are the reader's concern.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from eagle.files import is_local

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
HUB_KEYWORDS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# What trainers wrap the tensors of a `.bin` into.
WRAPPERS = ("module", "state_dict", "model", "model_state_dict")
DOWNLOAD = "download it again, or save it anew"


def find(path: str, names: tuple[str, ...], hub: dict[str, Any]) -> Path:
    """Return the first of `names` in a folder or a Hub repository; the path of a file in a folder means the folder.

    Raises:
        FileNotFoundError: there is none of them, or no such folder.
    """
    folder = Path(path).parent if Path(path).is_file() else Path(path)
    if folder.is_dir():
        found = next((folder / name for name in names if (folder / name).is_file()), None)
        if found is None:
            raise FileNotFoundError(f"{folder} holds none of {names}")
        return found
    if is_local(path) or "/" not in path:
        raise FileNotFoundError(f"{path!r} is neither a folder nor a Hub repository id")
    for name in names:
        try:
            return Path(hf_hub_download(path, name, **hub))
        except EntryNotFoundError:
            continue
    raise FileNotFoundError(f"Hub repository {path!r} holds none of {names}")


def read_fields(path: str, hub: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a `config.json`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or no object.
    """
    file = find(path, ("config.json",), hub)
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as failure:
        raise ValueError(f"{file} is no JSON ({failure}): {DOWNLOAD}") from failure
    if not isinstance(fields, dict):
        raise ValueError(f"{file} holds a {type(fields).__name__}, not the fields of a configuration")
    return fields


def read_weights(path: str, **hub: Any) -> dict[str, torch.Tensor]:
    """Read a head's tensors by name.

    Raises:
        FileNotFoundError: there is no file of weights.
        ValueError: it is damaged, or holds something else than tensors of floating-point and whole numbers.
    """
    file = find(path, WEIGHT_FILES, hub)
    state = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
    for name, tensor in state.items():
        _check_kind(file, name, tensor)
    return state


def tensor_names(path: str) -> list[str]:
    """Return the names of the tensors in a folder's file of weights; none where there is none that can be read."""
    try:
        found = find(path, WEIGHT_FILES, {})
        if found.suffix == ".safetensors":
            with safe_open(found, "pt") as file:
                return list(file.keys())
        return list(_unwrapped(torch.load(found, map_location="cpu", weights_only=True, mmap=True)) or ())
    except (OSError, SafetensorError, UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, TypeError):
        return []  # whoever wants the tensors themselves will say what is wrong with them


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except SafetensorError as failure:
        raise ValueError(f"{file} is damaged ({failure}): {DOWNLOAD}") from failure


def _read_pickle(file: Path) -> dict[str, torch.Tensor]:
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as failure:  # whatever a pickle's instructions stumble over
        # torch's own words advise to load it without the check, which would run what is in it.
        raise ValueError(
            f"{file} is damaged or holds something else than tensors, which is not loaded because it could run code: "
            f"{DOWNLOAD} as model.safetensors"
        ) from failure
    tensors = _unwrapped(found)
    if tensors is None:
        what = f"the keys {sorted(map(str, found))[:5]}" if isinstance(found, Mapping) else f"a {type(found).__name__}"
        raise ValueError(f"{file} holds {what} instead of tensors by name")
    return tensors


def _unwrapped(found: Any) -> dict[str, torch.Tensor] | None:
    """Return the tensors of a dictionary, or of the only one within it that trainers write."""
    while isinstance(found, Mapping):
        if found and all(isinstance(name, str) and isinstance(part, torch.Tensor) for name, part in found.items()):
            return dict(found)
        inner = [found[name] for name in WRAPPERS if isinstance(found.get(name), Mapping)]
        if len(inner) != 1:
            return None
        found = inner[0]
    return None


def _check_kind(file: Path, name: str, tensor: torch.Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise ValueError(f"{file}: {name} is a {tensor.layout} tensor: save it as an ordinary one")
    if name in ("d2t", "t2d"):
        if tensor.is_floating_point() or tensor.is_complex():
            raise ValueError(f"{file}: {name} holds {_said(tensor)} numbers, it needs whole ones")
    elif tensor.dtype not in FLOATS and name.endswith((".weight", ".bias")):
        known = ", ".join(map(_said, FLOATS))
        raise ValueError(f"{file}: {name} holds {_said(tensor)} numbers; a head computes with {known}: dequantise it")


def _said(what: torch.Tensor | torch.dtype) -> str:
    return str(what.dtype if isinstance(what, torch.Tensor) else what).removeprefix("torch.")
