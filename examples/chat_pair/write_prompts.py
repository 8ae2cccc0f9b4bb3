"""The chat pair's prompts: questions that the target writes itself, and GSM8K's training questions (MIT).

    python examples/chat_pair/write_prompts.py --gsm8k gsm8k_train.jsonl --self-written 20000

A chat model that is given the words before a user's turn goes on with a question of the kind it was trained on. Those
that do not end, are very short or very long, or came before are left out. Every fiftieth prompt of either kind is held
out. Interrupted, the same command goes on.
"""

import argparse
import json
import random
from contextlib import closing
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from eagle.chat import choose_template
from eagle.data.answer_file import AnswerFile
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


def self_written(path: Path, target: str, count: int, dtype: str) -> list[str]:
    """Return what the target writes as a user's turn, `count` times; "" for what comes to no end.

    Args:
        path: keeps them as they are written; what an earlier run began is not written again.
        target: its folder or Hub id.
        count: how many.
        dtype: of the target.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base, tokenizer = load_base(target, {"dtype": dtype, "device_map": device}), AutoTokenizer.from_pretrained(target)
    template = choose_template(tokenizer)
    assert template is not None
    marked = template.render([{"role": "user", "content": "\0"}], asks=False)
    prompt = tokenizer(marked.partition("\0")[0], add_special_tokens=False)["input_ids"]
    how = {"ends": [base.config.eos_token_id], "temperatures": [0.8, 1.0], "max_new_tokens": 160, "seed": 0}
    author = ContinuousAuthor(TargetModel(base), AnswerRules(tokenizer=tokenizer, most=None, **how))
    questions = [Question(number, 0, str(number), str(number), [], prompt) for number in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(AnswerFile(path, {"target": target, "dtype": dtype, **how})) as answers:
        missing = [question for question in questions if answers.find(question) is None]
        rest = iter(missing)
        with tqdm(total=count, initial=count - len(missing), unit=" questions") as bar:
            for answer in author.write(lambda: next(rest, None)):
                answers.add(answer)
                bar.update()
        written = [answers.find(question) for question in questions]
    return [answer.text if answer is not None and answer.ended else "" for answer in written]


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
    own = kept(self_written(args.out / "self_written.jsonl", args.base_model_path, args.self_written, args.dtype))
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
