"""The tiny pair's text: the Python standard library found on this machine.

Owns which files are read, which whole top-level packages are held out, and the BPE tokenizer trained on the rest.
Nothing of a held-out package reaches the tokenizer, the target or the heads.

    python examples/tiny_pair/corpus.py --out build/tiny_pair

writes `tokenizer/`, `train.npy`, `held_out.npy` (uint16 ids, files separated by `<|endoftext|>`), `train.jsonl`,
`held_out.jsonl` (a file's text per line) and `corpus.json` (what was kept, dropped and held out, and why).
"""

import argparse
import json
import random
import re
import sysconfig
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

HELD_OUT = frozenset({"concurrent", "email", "json", "logging", "tomllib", "wsgiref", "zoneinfo"})
SKIPPED_FOLDERS = frozenset(
    {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__", "lib-dynload"}
)
SEPARATOR = "<|endoftext|>"
VOCABULARY = 4096
# A newline with its indent is one piece, so that block structure costs one token a line.
PIECES = r"\r?\n[ \t]*| ?[A-Za-z_]+|\d| ?[^\sA-Za-z_\d]+|[ \t]+"
GENERATED = re.compile(r"auto-?generated|this file (is|was) generated|do not edit", re.IGNORECASE)


@dataclass
class Corpus:
    """Source texts by path relative to the library, and the reason for every file left out."""

    train: dict[str, str] = field(default_factory=dict)
    held_out: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)


def library_files(root: Path) -> Iterator[Path]:
    """Yield the library's source files in sorted order, without installed packages, tests and data packages."""
    for path in sorted(root.rglob("*.py")):
        if not SKIPPED_FOLDERS.intersection(path.relative_to(root).parts):
            yield path


def is_table(text: str) -> bool:
    """Tell whether most of a file is literals: lines that hold hardly a name outside quotes."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    bare = [re.sub(r"""(\"[^\"]*\"|'[^']*'|0x[0-9a-fA-F]+|[\d\s.,:;()\[\]{}+-])""", "", line) for line in lines]
    return len(lines) > 40 and sum(len(line) < 2 for line in bare) > 0.6 * len(lines)


def near_duplicate(text: str, seen: dict[int, set[str]], name: str, sizes: dict[str, int]) -> str | None:
    """Return an earlier file that holds 60 % of this one's distinct longer lines or the reverse; remember this one.

    Files with fewer than 20 such lines are never compared: a licence header alone would make them alike.
    """
    lines = {hash(line.strip()) for line in text.splitlines() if len(line.strip()) > 12}
    if len(lines) < 20:
        return None
    shared: dict[str, int] = defaultdict(int)
    for line in lines:
        for other in seen.get(line, ()):
            shared[other] += 1
    for line in lines:
        seen.setdefault(line, set()).add(name)
    sizes[name] = len(lines)
    return next((other for other, n in shared.items() if n >= 0.6 * min(len(lines), sizes[other])), None)


def collect(root: Path) -> Corpus:
    """Read the library below `root` and sort its files into train, held out and dropped."""
    corpus, seen, sizes = Corpus(), {}, {}
    # Held-out packages go first: a copy of one of their files in another package is what gets dropped.
    files = sorted(library_files(root), key=lambda p: (p.relative_to(root).parts[0] not in HELD_OUT, str(p)))
    for path in files:
        name = str(path.relative_to(root))
        text = path.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n")
        if len(text) < 200:
            corpus.dropped[name] = "shorter than 200 characters"
        elif GENERATED.search(text[:600]) or is_table(text):
            corpus.dropped[name] = "generated or a table"
        elif other := near_duplicate(text, seen, name, sizes):
            corpus.dropped[name] = f"near-duplicate of {other}"
        elif path.relative_to(root).parts[0] in HELD_OUT:
            corpus.held_out[name] = text
        else:
            corpus.train[name] = text
    return corpus


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of `VOCABULARY` tokens; `SEPARATOR` is its only special token, id 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SEPARATOR,
        eos_token=SEPARATOR,
        pad_token=SEPARATOR,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """Return the files' ids as one uint16 array, each file preceded by the separator."""
    pieces = [np.array([tokenizer.bos_token_id, *ids], dtype=np.uint16) for ids in tokenizer(texts)["input_ids"]]
    return np.concatenate(pieces)


def main(argv: list[str] | None = None) -> int:
    """Collect the files, train the tokenizer, write the token arrays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/tiny_pair"))
    parser.add_argument("--library", type=Path, default=Path(sysconfig.get_path("stdlib")))
    args = parser.parse_args(argv)
    corpus = collect(args.library)
    train = list(corpus.train.values())
    random.Random(0).shuffle(train)
    tokenizer = train_tokenizer(train)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(args.out / "tokenizer")
    texts = {"train": train, "held_out": list(corpus.held_out.values())}
    ids = {name: encode(tokenizer, files) for name, files in texts.items()}
    for name, files in texts.items():
        np.save(args.out / f"{name}.npy", ids[name])
        (args.out / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in files))
    report = {
        "python": sysconfig.get_python_version(),
        "train_files": len(corpus.train),
        "held_out_files": sorted(corpus.held_out),
        "tokens": {name: int(array.size) for name, array in ids.items()},
        "characters_per_token": round(sum(map(len, train)) / ids["train"].size, 3),
        "dropped": corpus.dropped,
    }
    (args.out / "corpus.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: v for k, v in report.items() if k not in ("dropped", "held_out_files")}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
