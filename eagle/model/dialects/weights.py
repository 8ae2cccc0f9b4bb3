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
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from eagle.files import is_local

INDEX = ".index.json"
WEIGHT_FILES = tuple(f"{name}{end}" for name in ("model.safetensors", "pytorch_model.bin") for end in ("", INDEX))
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
            return _downloaded(path, name, hub)
        except EntryNotFoundError:
            continue
    raise FileNotFoundError(f"Hub repository {path!r} holds none of {names}")


def _downloaded(path: str, name: str, hub: dict[str, Any]) -> Path:
    """Return a file of a Hub repository, from the cache where it is there.

    Raises:
        EntryNotFoundError: the repository has no such file.
        FileNotFoundError: there is no such repository or revision, none that may be read, or no way to it.
        OSError: the download broke off.
        ValueError: no repository can have this name.
    """
    at = f" at revision {hub['revision']!r}" if hub.get("revision") else ""
    try:
        return Path(hf_hub_download(path, name, **hub))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as failure:
        raise FileNotFoundError(
            f"{name} of Hub repository {path!r}{at} is not in the cache, and the Hub cannot be reached or was not to "
            "be asked: download it while online, or pass a folder"
        ) from failure
    except EntryNotFoundError:
        raise
    except GatedRepoError as failure:
        raise FileNotFoundError(
            f"Hub repository {path!r} is gated: ask for access on its page, then pass token= or run `hf auth login`"
        ) from failure
    except RevisionNotFoundError as failure:
        raise FileNotFoundError(f"Hub repository {path!r} has no revision {hub.get('revision')!r}") from failure
    except RepositoryNotFoundError as failure:
        raise FileNotFoundError(
            f"{path!r} is neither a folder nor a Hub repository that may be read: check its name, and pass token= or "
            "run `hf auth login` where it is private"
        ) from failure
    except HFValidationError as failure:
        raise ValueError(f"{path!r} is neither a folder nor the name of a Hub repository") from failure
    except Exception as failure:  # the client's errors, which differ by its release
        if getattr(getattr(failure, "response", None), "status_code", None) in (401, 403):
            raise FileNotFoundError(
                f"Hub repository {path!r} may not be read: pass token= or run `hf auth login` as somebody who may"
            ) from failure
        words = " ".join(str(failure).split())[:200]
        raise OSError(f"{name} of Hub repository {path!r} could not be downloaded ({words}): try again") from failure


def read_fields(path: str, hub: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a `config.json`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or no object.
    """
    return _json(find(path, ("config.json",), hub))


def _json(file: Path) -> dict[str, Any]:
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as failure:
        raise ValueError(f"{file} is no JSON ({failure}): {DOWNLOAD}") from failure
    if not isinstance(fields, dict):
        raise ValueError(f"{file} holds a {type(fields).__name__} instead of fields by name")
    return fields


def read_weights(path: str, **hub: Any) -> dict[str, torch.Tensor]:
    """Read a head's tensors by name.

    Raises:
        FileNotFoundError: there is no file of weights.
        ValueError: it is damaged, or holds something else than tensors of floating-point and whole numbers.
    """
    file = find(path, WEIGHT_FILES, hub)
    if file.name.endswith(INDEX):
        return _read_shards(file, path, hub)
    return _read(file)


def _read(file: Path) -> dict[str, torch.Tensor]:
    state = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
    for name, tensor in state.items():
        _check_kind(file, name, tensor)
    return state


def _read_shards(index: Path, path: str, hub: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Read the tensors that an index says are in several files."""
    files = _json(index).get("weight_map")
    if not isinstance(files, dict) or not files or any(Path(str(name)).name != name for name in files.values()):
        raise ValueError(f"{index} names no files of tensors: {DOWNLOAD}")
    state: dict[str, torch.Tensor] = {}
    for name in sorted(set(files.values())):
        shard = _read(find(path, (name,), hub))
        wanted = {tensor for tensor, file in files.items() if file == name}
        if wanted != set(shard):
            differing = sorted(wanted ^ set(shard))[:4]
            raise ValueError(f"{index.name} and {name} disagree about the tensors {differing}: {DOWNLOAD}")
        state |= shard
    return state


def read_tensor(path: str, name: str, **hub: Any) -> torch.Tensor | None:
    """Return one tensor of a folder or repository in safetensors files; None where it is not there by this name.

    Raises:
        FileNotFoundError: there is no such folder or repository, or no file of weights.
    """
    file = find(path, WEIGHT_FILES, hub)
    if file.name.endswith(INDEX):
        shard = (_json(file).get("weight_map") or {}).get(name)
        if shard is None:
            return None
        file = find(path, (str(shard),), hub)
    if file.suffix != ".safetensors":
        return None
    with safe_open(file, "pt") as tensors:
        return tensors.get_tensor(name) if name in tensors.keys() else None  # noqa: SIM118


def tensor_names(path: str) -> list[str]:
    """Return the names of the tensors in a folder's file of weights; none where there is none that can be read."""
    try:
        found = find(path, WEIGHT_FILES, {})
        if found.name.endswith(INDEX):
            return list(_json(found).get("weight_map") or ())
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
