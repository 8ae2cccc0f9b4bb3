"""Token maps: which tokens an EAGLE-1/2 head drafts (FR-Spec, arXiv 2502.14856), in and out of files.

A map is the file `token_map.pt` beside a head's weights: a list of ids of the target, as FR-Spec publishes them and
SGLang's `--speculative-token-map` reads them. Head and configuration stay as they are, so that whoever knows no such
file loads the same head. Nothing in a file is executed.

Shapes: W draft vocabulary.
"""

import io
import logging
from collections.abc import Collection
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

from eagle.files import whole_file
from eagle.model.dialects.weights import DOWNLOAD, find
from eagle.model.kinds import are_whole, shown

logger = logging.getLogger(__name__)

TOKEN_MAP = "token_map.pt"
# Beyond any vocabulary; a sum of ids stays far from overflowing.
MOST = 1 << 31


def asked_tokens(token_map: Any, **hub: Any) -> torch.Tensor | Literal[False] | None:
    """Return what the argument `token_map` asks for: ids [W], False for none, None for those that lie with the head.

    Args:
        token_map: a file, `ORG/REPO/FILE` of the Hub, ids, False or None.
        hub: keywords of a download.

    Raises:
        ValueError: something else, or ids that are no draft vocabulary.
        FileNotFoundError: no such file.
    """
    if token_map is None or token_map is False:
        return token_map
    if isinstance(token_map, str | PathLike):
        return read_token_map(str(token_map), **hub)
    is_list = isinstance(token_map, Collection) and getattr(token_map, "ndim", 1) == 1
    ids = token_map.tolist() if is_list and isinstance(token_map, torch.Tensor) else token_map
    if not is_list or not are_whole(ids):
        raise ValueError(
            f"token_map={shown(token_map)} must be a file of token ids, a list of them, False, or None for what lies "
            "with the head"
        )
    ids_W = _ids(ids, "token_map")
    if len(ids_W.unique()) < len(ids_W):
        raise ValueError(f"token_map={shown(token_map)} names a token twice")
    return ids_W


def read_token_map(path: str, **hub: Any) -> torch.Tensor:
    """Return the ids [W] of a file, ascending: published lists are in order of frequency, and may repeat an id.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or holds something else than ids.
    """
    file = _found(path, hub)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as failure:  # whatever a pickle's instructions stumble over
        raise ValueError(
            f"{file} is damaged or holds something else than token ids, which is not loaded because it could run "
            f"code: {DOWNLOAD}"
        ) from failure
    if isinstance(found, torch.Tensor):
        found = found.tolist() if found.ndim == 1 else None
    if not isinstance(found, list | tuple) or not are_whole(found):
        raise ValueError(f"{file} holds {shown(found)} instead of a list of token ids")
    ids_W = _ids(found, str(file))
    distinct_W = ids_W.unique()
    if len(distinct_W) < len(ids_W):
        logger.info("%s names %d tokens more than once", file, len(ids_W) - len(distinct_W))
    return distinct_W


def head_tokens(path: str, **hub: Any) -> torch.Tensor | None:
    """Return the ids [W] of the token map that lies with a head, None where none does.

    Args:
        path: folder or Hub id of the head, or its `config.json`.
        hub: keywords of a download.

    Raises:
        ValueError: see `read_token_map`.
    """
    try:
        file = find(path, (TOKEN_MAP,), hub)
    except (FileNotFoundError, RepositoryNotFoundError):
        return None
    return read_token_map(str(file))


def write_token_map(folder: Path, ids_W: torch.Tensor) -> None:
    """Put a token map beside a head's weights, whole or not at all; the same ids make the same bytes."""
    content = io.BytesIO()
    torch.save(ids_W.tolist(), content)
    with whole_file(folder / TOKEN_MAP) as unfinished:
        unfinished.write_bytes(content.getvalue())


def _found(path: str, hub: dict[str, Any]) -> Path:
    if Path(path).is_file():
        return Path(path)
    repository, _, name = path.rpartition("/")
    if repository.count("/") == 1 and name and not path.startswith((".", "/", "~")) and not Path(path).exists():
        try:
            return Path(hf_hub_download(repository, name, **hub))
        except (EntryNotFoundError, RepositoryNotFoundError) as failure:
            raise FileNotFoundError(f"token_map={path!r}: {' '.join(str(failure).split())[:200]}") from failure
    raise FileNotFoundError(f"token_map={path!r} is no file, nor ORG/REPO/FILE of the Hub")


def _ids(ids: Any, where: str) -> torch.Tensor:
    ids = sorted(map(int, ids))
    if not ids:
        raise ValueError(f"{where} names no token")
    if ids[0] < 0 or ids[-1] >= MOST:
        raise ValueError(f"{where} names token {ids[0] if ids[0] < 0 else ids[-1]}, which no vocabulary has")
    return torch.tensor(ids)
