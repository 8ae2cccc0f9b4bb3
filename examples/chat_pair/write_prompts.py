"""The chat pair's prompts: questions that the target writes itself, and GSM8K's training questions (MIT).

    python examples/chat_pair/write_prompts.py --gsm8k gsm8k_train.jsonl --self-written 20000

A chat model that is given the words before a user's turn goes on with a question of the kind it was trained on. Those
that do not end, are very short or very long, or came before are left out. Every fiftieth prompt of either kind is held
out. Interrupted, the same command goes on.
"""

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from eagle.chat import choose_template
from eagle.data.answer_rules import AnswerRules
from eagle.data.answers import Question
from eagle.data.continuous import ContinuousAuthor
from eagle.model.support.loading import load_base
from eagle.model.target import TargetModel

HELD_OUT = 50


def gsm8k(source: str) -> list[str]:
    """Return the questions of a file of JSON lines, or of a name of `datasets`, in a random order."""
    if Path(source).is_file():
        questions = [json.loads(line)["question"] for line in Path(source).read_text(encoding="utf-8").splitlines()]
    else:
        from datasets import load_dataset

        questions = [row["question"] for row in load_dataset(source, "main", split="train")]
    random.Random(0).shuffle(questions)
    return questions


def self_written(target: str, numbers: Sequence[int], dtype: str) -> Iterator[tuple[int, str]]:
    """Yield what the target writes as a user's turn, with the number that seeds it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base, tokenizer = load_base(target, {"dtype": dtype, "device_map": device}), AutoTokenizer.from_pretrained(target)
    template = choose_template(tokenizer)
    assert template is not None
    marked = template.render([{"role": "user", "content": "\0"}], asks=False)
    prompt = tokenizer(marked.partition("\0")[0], add_special_tokens=False)["input_ids"]
    rules = AnswerRules(
        tokenizer=tokenizer,
        ends=[base.config.eos_token_id],
        temperatures=(0.8, 1.0),
        max_new_tokens=160,
        most=None,
        seed=0,
    )
    questions = (Question(number, 0, str(number), str(number), [], prompt) for number in numbers)
    for answer in ContinuousAuthor(TargetModel(base), rules).write(lambda: next(questions, None)):
        yield answer.question.place, answer.text if answer.ended else ""


def written(path: Path, target: str, count: int, dtype: str) -> list[str]:
    """Return `count` texts of the target's, most of them from a file that an earlier run began."""
    found = dict(map(tuple, map(json.loads, path.read_text(encoding="utf-8").splitlines()))) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    # What was in flight when a run was interrupted is written again, from the same seeds.
    missing = [number for number in range(count) if number not in found]
    with path.open("a", encoding="utf-8") as file, tqdm(total=count, initial=len(found), unit=" questions") as bar:
        for number, text in self_written(target, missing, dtype) if missing else ():
            found[number] = text
            file.write(json.dumps([number, text], ensure_ascii=False) + "\n")
            file.flush()
            bar.update()
    return [found[number] for number in range(count)]


def kept(texts: list[str]) -> list[str]:
    """Leave out what is no question to learn from, and what came before."""
    return list(dict.fromkeys(text for text in texts if 8 < len(text) < 600))


def main(argv: list[str] | None = None) -> int:
    """Write the prompts to train with and those that are held out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model-path", default="build/chat_pair/target")
    parser.add_argument("--out", type=Path, default=Path("build/chat_pair"))
    parser.add_argument("--gsm8k", default="openai/gsm8k", help="JSON lines with `question`, or a name of datasets")
    parser.add_argument("--self-written", type=int, default=20000, help="questions that the target writes")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    args = parser.parse_args(argv)
    own = kept(written(args.out / "self_written.jsonl", args.base_model_path, args.self_written, args.dtype))
    kinds = {"gsm8k": gsm8k(args.gsm8k), "self": own}
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "held_out": []}
    for kind, texts in kinds.items():
        for number, text in enumerate(texts):
            parts["train" if number % HELD_OUT else "held_out"].append((kind, text))
    for part, prompts in parts.items():
        random.Random(0).shuffle(prompts)
        lines = [json.dumps({"prompt": text, "source": kind}, ensure_ascii=False) + "\n" for kind, text in prompts]
        path = args.out / f"{part}.jsonl"
        path.write_text("".join(lines), encoding="utf-8")
        counts = ", ".join(f"{sum(kind == one for one, _ in prompts):,} {kind}" for kind in kinds)
        print(f"{path}: {len(prompts):,} prompts ({counts})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
