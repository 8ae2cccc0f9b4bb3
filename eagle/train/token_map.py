"""Choose the tokens that an EAGLE-1/2 head drafts, the most frequent ones of its data, and put them beside the head.

    python -m eagle.train.token_map --tmpdir DATA --ea-model-path HEAD --size 8192

Prints what share of held-out answers maps of several sizes cover: a token outside is never drafted. Without `--size`
nothing is written; `--size 0` takes the map away. Weights and `config.json` stay as they are, and no text changes.
"""

import argparse
import sys
from pathlib import Path

from eagle.data.features import SUMMARY as FEATURES
from eagle.data.features import load_features
from eagle.data.folder import SUMMARY as TEXTS
from eagle.data.folder import load
from eagle.data.shards import Texts
from eagle.model.dialects.checkpoint import is_eagle3_state, read_config
from eagle.model.dialects.token_maps import TOKEN_MAP, write_token_map
from eagle.model.dialects.weights import read_weights
from eagle.model.kinds import whole
from eagle.train.draft_vocabulary import DraftVocabulary

SHARES = (32, 16, 8, 4, 2)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    about = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m eagle.train.token_map", description=about)
    parser.add_argument("--ea-model-path", type=Path, required=True, help="folder of the EAGLE-1/2 head")
    help = "folder of python -m eagle.data or eagle.ge_data whose answers are counted"
    parser.add_argument("--tmpdir", type=Path, help=help)
    help = "such a folder of held-out texts; default: every tenth text of --tmpdir is held out for the table"
    parser.add_argument("--testpath", type=Path, help=help)
    parser.add_argument("--size", type=int, help="tokens to draft; 0 takes the map away; default: only print")
    return parser


def head_vocabulary(folder: Path) -> int:
    """Return the vocabulary [V] of an EAGLE-1/2 head.

    Raises:
        FileNotFoundError: no folder with a head.
        ValueError: it holds an EAGLE-3 head, whose tokens are chosen when it is trained.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--ea-model-path {folder} is no folder: a head of the Hub is downloaded first")
    config = read_config(str(folder))
    if is_eagle3_state(read_weights(str(folder))):
        raise ValueError(f"{folder} holds an EAGLE-3 head: its draft vocabulary is chosen when it is trained")
    return int(config.vocab_size)


def texts_of(folder: Path, vocabulary: int) -> Texts:
    """Open the texts of a folder of data or features.

    Raises:
        FileNotFoundError, ValueError: there are none, they are damaged, or of another vocabulary.
    """
    if (folder / FEATURES).is_file():
        return load_features(folder, vocabulary=vocabulary).texts
    if not (folder / TEXTS).is_file():
        raise FileNotFoundError(f"{folder} holds neither {TEXTS} nor {FEATURES}: make it with python -m eagle.data")
    return load(folder, vocabulary=vocabulary)


def table(vocabulary: DraftVocabulary, size: int | None) -> str:
    """Return what maps of several sizes cover of the held-out answers.

    Raises:
        ValueError: too few texts to hold some out.
    """
    sizes = sorted({vocabulary.size // share for share in SHARES} | {size or vocabulary.size})
    shares = vocabulary.coverage(sizes)
    if shares is None:
        raise ValueError("--tmpdir has too few texts to hold some out: give --testpath")
    lines = [f"{'tokens':>10}  {'of the vocabulary':>17}  {'of held-out answers':>19}"]
    for count, covered in shares.items():
        lines.append(f"{count:>10,}  {count / vocabulary.size:>17.1%}  {covered:>19.2%}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Print the table; write or take away the map."""
    command = parser()
    args = command.parse_args(argv)
    try:
        vocabulary, place = head_vocabulary(args.ea_model_path), args.ea_model_path / TOKEN_MAP
        if args.size is not None and whole("--size", args.size, 0) > vocabulary:
            raise ValueError(f"--size={args.size} must be at most the head's {vocabulary} tokens")
        if args.size == 0:
            was_there = place.is_file()
            place.unlink(missing_ok=True)
            sys.stdout.write(f"{place}: {'taken away' if was_there else 'was not there'}\n")
            return 0
        if args.tmpdir is None:
            raise ValueError("--tmpdir is missing, the folder whose answers are counted")
        held = None if args.testpath is None else texts_of(args.testpath, vocabulary)
        tokens = DraftVocabulary(texts_of(args.tmpdir, vocabulary), vocabulary, held)
        sys.stdout.write(table(tokens, args.size) + "\n")
        if args.size is not None:
            write_token_map(args.ea_model_path, tokens.tokens(args.size))
            sys.stdout.write(f"{place}: {args.size:,} of {vocabulary:,} tokens\n")
    except (ValueError, NotImplementedError, OSError) as refusal:
        command.error(str(refusal).partition("\n")[0])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
