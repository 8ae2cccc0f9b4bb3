"""Train an EAGLE-3 head on chats, by the reference's name and flags; `eagle.train.main` does the work.

    cd eagle/traineagle3 && deepspeed main.py --deepspeed_config ds_config.json \\
        --base-model-path BASE --trainpath chats.jsonl --testpath held_out.jsonl --savedir HEAD

Chats become folders of `python -m eagle.data` in HEAD first, or are such folders, or features of `eagle.ge_data`. Other
flags are those of `python -m eagle.train.main`.
"""

import argparse
import logging
import os
import time
from pathlib import Path

from eagle.interrupts import own_command
from eagle.train.interruption import Interruption, interruptible
from eagle.train.main import main as train

WAIT = 1.0  # seconds between looks for what the first process prepares
logger = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    """Return the flags beyond those of `eagle.train.main`."""
    parser = argparse.ArgumentParser(prog="main.py", description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("--base-model-path", "--basepath", required=True, help="folder or Hub id of the target")
    parser.add_argument("--trainpath", required=True, help="chats: .json, .jsonl, or a prepared folder")
    parser.add_argument("--testpath", help="held-out chats, for acceptance lengths")
    parser.add_argument("--savedir", type=Path, required=True, help="where the head goes, and its checkpoints")
    parser.add_argument("--template", help="FastChat template; default: the tokenizer's chat template")
    parser.add_argument("--max-length", type=int, default=2048, help="tokens at which chats are cut")
    parser.epilog = "every flag of python -m eagle.train.main works too: see its --help"
    return parser


def prepared(source: str, folder: Path, args: argparse.Namespace) -> str:
    """Return a prepared folder: the source itself, or what the first process makes of it."""
    # Imported here, so that an interruption is answered from the beginning.
    from eagle.data import prepare
    from eagle.data.folder import SUMMARY
    from eagle.model.support.loading import load_tokenizer
    from eagle.train.sources import holds

    if holds(Path(source)) is not None:
        return source
    if int(os.environ.get("RANK", 0)) == 0:
        tokenizer = load_tokenizer(args.base_model_path)
        options = {"template": args.template, "max_length": args.max_length}
        prepare([source], tokenizer, folder, target=args.base_model_path, **options)
    while not (folder / SUMMARY).is_file():
        time.sleep(WAIT)  # a launcher ends us all if the first process fails
    return str(folder)


def main(argv: list[str] | None = None) -> int:
    """Prepare chats, then train."""
    command = parser()
    args, others = command.parse_known_args(argv)
    again = own_command(argv, "eagle.traineagle3.main")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folders: dict[str, str] = {}

    def prepare_all(interruption: Interruption) -> int:
        interruption.words = lambda: f"interrupted; to go on: {again}"
        paths = {"train": args.trainpath} | ({"test": args.testpath} if args.testpath else {})
        try:
            folders.update({name: prepared(path, args.savedir / "data" / name, args) for name, path in paths.items()})
        except (ValueError, OSError, ImportError) as refusal:
            if interruption.broke_in:
                raise
            command.error(str(refusal).partition("\n")[0])
        return 0

    if stopped := interruptible(prepare_all, argv is None):
        return stopped
    flags = ["--base-model-path", args.base_model_path, "--cpdir", str(args.savedir), "--tmpdir", folders["train"]]
    flags += ["--testpath", folders["test"]] if "test" in folders else []
    return train([*others, *flags], again, kind="eagle3")


if __name__ == "__main__":
    raise SystemExit(main())
