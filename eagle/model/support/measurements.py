"""What is measured once on a machine and kept: JSON files under the user's cache directory.

`$XDG_CACHE_HOME/eagle/KIND/KEY.json` (`~/.cache/eagle/…`), where KEY is a digest of everything that decides about the
figures. A file that is not there or cannot be read means that they are measured anew.
"""

import hashlib
import json
import logging
import os
import platform
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

import eagle
from eagle.files import write_text

logger = logging.getLogger(__name__)

# Seconds before a bar is shown: what is over by then needs none.
PATIENCE = 0.5


def kept_file(kind: str, made_of: dict[str, Any]) -> Path:
    """Return where figures of a kind are kept, given all that decides about them."""
    everything = {"versions": [eagle.__version__, torch.__version__], "threads": torch.get_num_threads(), **made_of}
    key = hashlib.sha256(json.dumps(everything, sort_keys=True, default=str).encode()).hexdigest()[:24]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "eagle" / kind / f"{key}.json"


def read(path: Path) -> Any:
    """Return the document in a file; None where there is none or it cannot be read, however deep or long it is."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError, MemoryError):
        return None


def write(path: Path, document: Any) -> None:
    """Write a document whole or not at all; where that fails it is measured anew next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(document))
    except OSError as problem:
        logger.info("%s are not kept: %s", path.parent.name, problem)


def progress_bar(total: int, what: str) -> Any:
    """Return a bar on standard error, as transformers shows while it loads weights, and hidden where that is."""
    return transformers_logging.tqdm(total=total, desc=what, delay=PATIENCE, leave=False)


def device_name(device: torch.device) -> str:
    """Return what an accelerator calls itself, or the name of the processor."""
    if device.type != "cpu":
        return str(torch.get_device_module(device).get_device_name(device))
    return processor_name()


def processor_name() -> str:
    """Return the name of this machine's processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
