"""The plan of a folder of features: texts, target, columns, shards, sizes. The same for every process.

Shapes: N samples, F feature width, D hidden width, K stored logits, V tokens.
"""

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig

from eagle.data.features import FORMATS, SUMMARY, embeddings_path, read_summary
from eagle.data.folder import Prepared, check_settings, load
from eagle.data.shards import shard_path, write_document
from eagle.data.tensor_files import TensorFile
from eagle.ge_data.disk import readable
from eagle.model.configs import EConfig, tapped_layers, text_config
from eagle.model.support.output_transform import transform_of
from eagle.model.target import Taps

logger = logging.getLogger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
HEADER = 4096  # bytes of a file that are not numbers, and a little
TEXT_BYTES = 5  # of a token: its id and its mask
UNTOLD = ("first", "reasons")  # of a data folder's summary: examples of what was skipped


@dataclass(frozen=True)
class Plan:
    """A folder of features before it is made.

    Attributes:
        folder: where it goes.
        data: the prepared texts.
        target: folder or Hub id.
        taps: what the features are.
        top_k: stored logits per token, or None for hidden states.
        batch: samples of one forward.
        columns: what is stored of every token: name -> width and dtype.
        settings: all that the files' contents depend on.
        facts: what `features.json` says besides.
        lengths_N: tokens of every sample.
        shards: the samples of each shard.
        embedding_bytes: size of the target's embeddings and output matrix.
    """

    folder: Path
    data: Path
    target: str
    taps: Taps
    top_k: int | None
    batch: int
    columns: dict[str, tuple[int, torch.dtype]]
    settings: dict[str, Any]
    facts: dict[str, Any]
    lengths_N: NDArray[np.int64]
    shards: list[range]
    embedding_bytes: int

    @property
    def about(self) -> str:
        """What every file carries: the settings it was made with."""
        return json.dumps(self.settings)

    @property
    def embeddings(self) -> Path:
        """The file of the target's embeddings and output matrix."""
        return embeddings_path(self.folder)

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return shard_path(self.folder, shard)

    def tokens(self, shards: Iterable[int]) -> int:
        """Tokens of some shards."""
        return sum(int(self.lengths_N[self.shards[shard]].sum()) for shard in shards)

    def size(self, shards: Iterable[int], embeddings: bool) -> int:
        """Return the bytes that some shards take, and the embeddings."""
        shards = list(shards)
        numbers = self.tokens(shards) * token_bytes(self.columns) + sum(8 * len(self.shards[shard]) for shard in shards)
        headers = (len(self.about) + HEADER) * (len(shards) + embeddings)
        return numbers + headers + self.embedding_bytes * embeddings

    @property
    def missing(self) -> list[int]:
        """The shards that are not there, or there with fewer or more samples."""
        return [shard for shard in range(len(self.shards)) if not self._is_there(shard)]

    def _is_there(self, shard: int) -> bool:
        if not self.path(shard).exists():
            return False
        ends = TensorFile(self.path(shard)).read("ends")
        return np.array_equal(ends, np.cumsum(self.lengths_N[self.shards[shard]]))

    @property
    def beyond(self) -> list[Path]:
        """The shards of more texts than there are now."""
        return [path for path in self.folder.glob("shard_*.safetensors") if path > self.path(len(self.shards) - 1)]

    def check_folder(self) -> None:
        """Compare what is there with what is to be made: texts may have been added at the end, or left out there.

        Raises:
            ValueError: files made with other settings, of other texts, or by something else.
        """
        if (self.folder / SUMMARY).exists():
            check_settings(self.folder, read_summary(self.folder), self.settings)
        paths = sorted(self.folder.glob("shard_*.safetensors"))
        for path in (*paths, *([self.embeddings] if self.embeddings.exists() else [])):
            check_settings(self.folder, _made_with(path), self.settings)
        texts = load(self.data)
        for shard, part in enumerate(self.shards):
            if self.path(shard).exists():
                self._check_texts(self.path(shard), texts, part.start)

    def _check_texts(self, path: Path, texts: Prepared, first: int) -> None:
        """See that a shard has the texts that stand at its place, be it fewer or more than it is to have."""
        file = TensorFile(path)
        begin, names = 0, ("ids", "mask")
        for index, end in enumerate(file.read("ends")[: len(texts) - first].tolist(), start=first):
            made, wanted = [file.read(name, slice(begin, end)) for name in names], texts[index]
            if not (np.array_equal(made[0], wanted.ids) and np.array_equal(made[1], wanted.mask)):
                raise ValueError(
                    f"{self.folder} was made of other texts: {path.name} has another one as sample {index}. Texts may "
                    "be added or left out at the end; for others choose another folder, or delete this one"
                )
            begin = end

    def finish(self) -> None:
        """Write `features.json`: the folder is finished."""
        self.check_folder()
        write_document(self.folder / SUMMARY, {"format": FORMATS[0], **self.settings, **self.facts})

    def report(self) -> str:
        """Say what the folder holds, in a few lines."""
        facts, dtype = self.facts, self.settings["dtype"]
        files = [*(self.path(shard) for shard in range(len(self.shards))), self.embeddings]
        size = readable(sum(path.stat().st_size for path in files))
        taps = self.taps
        layers = f"layers {', '.join(map(str, taps))}" if isinstance(taps, tuple) else "last hidden states"
        others = (
            f" and {self.top_k} logits" if self.top_k else ", last hidden states" if "hidden" in self.columns else ""
        )
        counts = f"{facts['samples']:,} samples, {facts['tokens']:,} tokens, {facts['shards']} shards"
        return f"{self.folder}: {counts}, {size}\n{self.settings['kind']} in {dtype}: {layers}{others}\n"


def _made_with(path: Path) -> dict[str, Any]:
    about = TensorFile(path, "pt").about
    if "counts" in about:
        raise ValueError(f"{path} holds no features: choose another folder, or delete it")
    return dict(about.get("settings", about))  # in format 1 they are all it says


def token_bytes(columns: dict[str, tuple[int, torch.dtype]]) -> int:
    """Return the bytes of one token."""
    return TEXT_BYTES + sum(width * dtype.itemsize for width, dtype in columns.values())


def ranges(lengths_N: NDArray[np.int64], most: int) -> list[range]:
    """Cut samples into ranges of at most so many tokens; a longer sample has one of its own."""
    cuts, tokens = [0], 0
    for index, length in enumerate(lengths_N.tolist()):
        if tokens and tokens + length > most:
            cuts.append(index)
            tokens = 0
        tokens += length
    return [range(*pair) for pair in zip(cuts, [*cuts[1:], len(lengths_N)], strict=True)]


def planned(
    folder: Path,
    data: Path,
    *,
    target: str | None = None,
    kind: str = "eagle3",
    tap_layers: list[int] | None = None,
    top_k: int | None = None,
    dtype: str = "bfloat16",
    batch: int = 8,
    shard_mb: float = 512,
    quantised: str | None = None,
) -> Plan:
    """Plan a folder of features; the target's configuration is read, not its weights.

    Args:
        folder: where it goes.
        data: what `python -m eagle.data` wrote.
        target: folder or Hub id; by default the one that the data was made for.
        kind: "eagle3" or "eagle".
        tap_layers: layers whose inputs are EAGLE-3's features; by default 2, n//2, n-3.
        top_k: store so many of the target's logits per token instead of what they are made of.
        dtype: of what is stored.
        batch: samples of one forward.
        shard_mb: size of a shard in 10⁶ bytes.
        quantised: "load_in_4bit", "load_in_8bit" or None.

    Raises:
        FileNotFoundError: no data, or no target.
        ValueError: a setting out of its range, data for another target, or taps that do not fit it.
    """
    texts = load(data)
    base = target or texts.summary["target"]
    config = _config(base)
    load(data, vocabulary=config.vocab_size)
    if not texts.files:
        raise ValueError(f"{data} holds no samples")
    _check(batch, shard_mb, top_k, config.vocab_size)
    taps = _taps(kind, tap_layers, config.num_hidden_layers)
    count = len(taps) if isinstance(taps, tuple) else 1
    columns = _columns(kind, config.hidden_size, DTYPES[dtype], count=count, top_k=top_k)
    settings = {
        "target": base,
        "kind": kind,
        "taps": list(taps) if isinstance(taps, tuple) else taps,
        "dtype": dtype,
        "top_k": top_k,
        "bs": batch,
        "shard_mb": float(shard_mb),  # 512 and 512.0 are one setting, and files carry it as text
        "quantised": quantised,
    }
    shards = ranges(texts.lengths_N, int(shard_mb * 1e6 // token_bytes(columns)))
    facts = {
        **{f"data.{name}": value for name, value in texts.summary.items() if name not in UNTOLD},
        "template": texts.summary["template"],
        "vocabulary": texts.summary["vocabulary"],
        "feature_width": columns["features"][0],
        "hidden_size": config.hidden_size,
        "transform": transform_of(config),
        "config": json.loads(config.to_json_string(use_diff=False)),
        "samples": len(texts),
        "tokens": int(texts.lengths_N.sum()),
        "shards": len(shards),
    }
    rows = (config.vocab_size * (1 if top_k else 2)) * config.hidden_size + config.vocab_size
    size = rows * (config.dtype or torch.float32).itemsize
    return Plan(folder, data, base, taps, top_k, batch, columns, settings, facts, texts.lengths_N, shards, size)


def _check(batch: int, shard_mb: float, top_k: int | None, vocabulary: int) -> None:
    for name, value, least in (("bs", batch, 1), ("shard-mb", shard_mb, 0.001)):
        if value < least:
            raise ValueError(f"--{name} {value} must be at least {least}")
    if top_k is not None and not 1 <= top_k <= vocabulary:
        raise ValueError(f"--top-logits {top_k} must be between 1 and the target's {vocabulary} tokens")


def _taps(kind: str, tap_layers: list[int] | None, layers: int) -> Taps:
    if kind == "eagle3":
        return tapped_layers(EConfig(tap_layers=tap_layers), layers)
    if tap_layers is not None:
        raise ValueError(f"--tap-layers {tap_layers} are EAGLE-3's: EAGLE-1/2 reads the last hidden state")
    return "last"


def _config(base: str) -> Any:
    try:
        return text_config(AutoConfig.from_pretrained(base))
    except (OSError, ValueError) as failure:
        words = str(failure).partition("\n")[0]
        raise FileNotFoundError(f"the target {base} cannot be read ({words}): name it with --basepath") from failure


def _columns(
    kind: str, width: int, dtype: torch.dtype, *, count: int, top_k: int | None
) -> dict[str, tuple[int, torch.dtype]]:
    columns = {"features": (count * width, dtype)}
    if top_k is not None:
        return columns | {"top_ids": (top_k, torch.int32), "top_logits": (top_k, dtype)}
    return columns if kind == "eagle" else columns | {"hidden": (width, dtype)}
