"""The reference's commands that answer benchmark questions, over one runner: `gen_ea_answer_*` and those beside it.

Answers go into a file of JSON lines as they are finished; the same command goes on where it was.
"""

import argparse
import ast
import json
import logging
import os
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import convert_file_size_to_int
from tqdm import tqdm

from eagle import interrupts
from eagle.commands.options import DTYPES
from eagle.evaluation.answer_processes import Said, answers_of_processes
from eagle.evaluation.answering import Answerer, AnswerSettings, TooLongError
from eagle.evaluation.pairs import at_least
from eagle.evaluation.questions import BenchQuestion, load_questions
from eagle.evaluation.record_file import RecordFile
from eagle.files import differing, write_text
from eagle.model import choices
from eagle.model.configs import tree_config
from eagle.model.support.loading import check_base

logger = logging.getLogger(__name__)
CHAIN = [[0] * length for length in range(1, 6)]
"""What n-α is measured with: five tokens one after the other, the head's first choice each."""
OWN = "own"
"""Name of the template that a tokenizer brings along."""


@dataclass(frozen=True)
class Family:
    """How the reference asks a family of models.

    Attributes:
        template: of FastChat's; None takes the tokenizer's own.
        temperature: unless another is asked for.
        is_llama3: `<|eot_id|>` ends an answer too.
        one_turn: only first turns are asked.
        total_token, depth, top_k: unless others are asked for.
    """

    template: str | None
    temperature: float = 1.0
    is_llama3: bool = False
    one_turn: bool = False
    total_token: int = 60
    depth: int = 5
    top_k: int = 10


FAMILIES = {
    "vicuna": Family("vicuna_v1.1"),
    "llama2chat": Family("llama-2"),
    "mix": Family("llama-2"),
    "llama3chat": Family(None, 0.0, is_llama3=True),
    "ds": Family(None, 0.0, is_llama3=True, one_turn=True),
    "qwen3": Family(None, total_token=32, depth=8, top_k=4),
}
KINDS = {
    "ea_answer": "answers with a draft head",
    "baseline_answer": "answers without drafting, to hold the others' speed to",
    "ea_alpha": "answers with chains of drafts, and how many tokens of them are accepted",
}


def parser(kind: str, family: str) -> argparse.ArgumentParser:
    """Return the command line of `gen_KIND_FAMILY`."""
    name, about = f"gen_{kind}_{family}", FAMILIES[family]
    drafts = kind != "baseline_answer"
    prog = f"python -m eagle.evaluation.{name}"
    usage = f"{prog} --base-model-path BASE {'--ea-model-path HEAD ' if drafts else ''}[--bench-name SET] [...]"
    parser = argparse.ArgumentParser(prog=prog, usage=usage, description=f"{KINDS[kind].capitalize()}: {family}.")
    parser.add_argument("--base-model-path", required=True)
    parser.add_argument("--ea-model-path", required=drafts, help=None if drafts else "not needed, and not loaded")
    parser.add_argument(
        "--use_eagle3",
        "--use-eagle3",
        action="store_true",
        help="insist on an EAGLE-3 head" if drafts else "no head is loaded",
    )
    parser.add_argument("--model-id", help="name in the answers (default: the model's folder)")
    parser.add_argument("--bench-name", default="mt_bench", help="set of questions, or a file of JSON lines")
    parser.add_argument("--question-begin", type=int, help="number of the first question, from 0")
    parser.add_argument("--question-end", type=int, help="number after the last one")
    parser.add_argument("--answer-file", type=Path, help="default: BENCH_NAME/MODEL_ID-temperature-T.jsonl")
    parser.add_argument("--max-new-token", "--max-new-tokens", type=int, default=1024, help="per turn")
    parser.add_argument("--total-token", type=int, default=about.total_token, help="nodes of the tree, root included")
    parser.add_argument("--depth", type=int, default=about.depth, help="expansions of the tree after the first")
    parser.add_argument("--top-k", type=int, default=about.top_k, help="children per expanded node")
    parser.add_argument(
        "--tree-choices",
        help="a static tree: mc_sim_7b_63, or a list of paths such as [[0],[0,0]]"
        + (" (default: a chain of five)" if kind == "ea_alpha" else " (default: dynamic)"),
    )
    parser.add_argument("--num-choices", type=int, default=1, help="answers to every question")
    parser.add_argument("--num-gpus-per-model", type=int, default=1, help="a model is spread over so many")
    parser.add_argument("--num-gpus-total", type=int, default=1, help="all models together; they share the questions")
    parser.add_argument("--max-gpu-memory", help="for weights, per GPU, as 40GiB")
    parser.add_argument("--load-in-8bit", action="store_true", help="quantise the base with bitsandbytes")
    parser.add_argument("--load-in-4bit", action="store_true", help="likewise")
    parser.add_argument(
        "--temperature", type=float, default=about.temperature, help="0 is greedy (default: %(default)s)"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="default: float16 on a GPU, float32 on a CPU")
    parser.add_argument(
        "--template",
        default=about.template or OWN,
        help="one of FastChat's, or own: the tokenizer's (default: %(default)s)",
    )
    parser.add_argument("--system-message", help="default: the template's")
    return parser


def settings_of(kind: str, family: str, args: argparse.Namespace) -> AnswerSettings:
    """Return what the options ask for.

    Raises:
        ValueError: an option is out of its range.
    """
    at_least(1, args, "max_new_token", "num_choices", "num_gpus_per_model", "num_gpus_total")
    at_least(0, args, "temperature", "question_begin", "question_end")
    check_base(args.base_model_path)
    if args.load_in_8bit and args.load_in_4bit:
        raise ValueError("--load-in-8bit and --load-in-4bit exclude each other")
    if args.num_gpus_total % args.num_gpus_per_model:
        raise ValueError("--num-gpus-total must be a multiple of --num-gpus-per-model")
    if args.num_gpus_total > max(1, torch.cuda.device_count()):
        raise ValueError(f"--num-gpus-total={args.num_gpus_total}: there are {torch.cuda.device_count()} GPUs here")
    if args.max_gpu_memory is not None:
        convert_file_size_to_int(args.max_gpu_memory)
        if not torch.cuda.is_available():
            raise ValueError(f"--max-gpu-memory={args.max_gpu_memory}: there is no GPU here")
    tree: Any = CHAIN if kind == "ea_alpha" else "dynamic"
    if args.tree_choices is not None:
        tree = tree_choices(args.tree_choices)
    tree_config(args.total_token, args.depth, args.top_k, 1.0, tree)
    head: dict[str, Any] = {
        "ea_model_path": args.ea_model_path,
        "use_eagle3": True if args.use_eagle3 else None,
        "tree": tree,
        "total_token": args.total_token,
        "depth": args.depth,
        "top_k": args.top_k,
    }
    if kind == "baseline_answer":
        head = {"ea_model_path": None}  # nothing of a head decides what it answers
    return AnswerSettings(
        base_model_path=args.base_model_path,
        **head,
        temperature=args.temperature,
        max_new_token=args.max_new_token,
        num_choices=args.num_choices,
        template=None if args.template == OWN else args.template,
        system_message=args.system_message,
        is_llama3=FAMILIES[family].is_llama3,
        one_turn=FAMILIES[family].one_turn,
        dtype=args.dtype or ("float16" if torch.cuda.is_available() else "float32"),
        num_gpus_per_model=args.num_gpus_per_model,
        load_in_8bit=args.load_in_8bit,
        load_in_4bit=args.load_in_4bit,
        max_gpu_memory=args.max_gpu_memory,
    )


def tree_choices(words: str) -> list[list[int]]:
    """Return a static tree by its name in `eagle.model.choices`, or from a list of paths.

    Raises:
        ValueError: it is neither.
    """
    found = getattr(choices, words, None) if words.isidentifier() else None
    if found is None:
        try:
            found = ast.literal_eval(words)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            found = None
    if not isinstance(found, list | tuple) or not all(isinstance(path, list | tuple) for path in found):
        raise ValueError(f"--tree-choices={words} is no name of a tree, and no list of paths")
    return [list(path) for path in found]


def finished(
    file: RecordFile, settings: AnswerSettings, model_id: str, questions: Sequence[BenchQuestion]
) -> set[int | str]:
    """Return the ids of the questions that a file answers.

    Args:
        file: of answers.
        settings, model_id: what they must have been made with.
        questions: what they must answer, where the ids are the same.

    Raises:
        ValueError: they are not; the message says in what.
    """
    asked = {question.id: question.key for question in questions}
    known = set[int | str]()
    for record in file.records:
        identity, made = record.get("question_id"), record.get("made")
        about = f"{file.path}, question {identity!r}"
        if not isinstance(identity, int | str) or not isinstance(made, Mapping) or "choices" not in record:
            raise ValueError(f"{about}: no answer that this command has made; choose another --answer-file")
        of_now = {**asdict(settings), "model_id": model_id}
        if others := differing({**made, "model_id": record.get("model_id")}, of_now):
            raise ValueError(f"{about} was answered with {others}; choose another --answer-file")
        if record.get("asked") != asked.get(identity, record.get("asked")):
            raise ValueError(f"{about} was asked in other words; choose another --answer-file")
        if identity in known:
            raise ValueError(f"{about} is answered twice: delete one of the two lines")
        known.add(identity)
    return known


def answered(
    settings: AnswerSettings, questions: Sequence[BenchQuestion], model_id: str, devices: Sequence[str]
) -> Generator[dict[str, Any], None, None]:
    """Yield records as they are finished; questions that are too long for the base are named and left out.

    Args:
        settings: what decides an answer.
        questions: those to answer.
        model_id: name in the records.
        devices: CUDA_VISIBLE_DEVICES of every process; of one, this process answers itself.
    """
    one = _answers_here if len(devices) == 1 else answers_of_processes
    with closing(one(settings, questions, model_id, devices)) as answers:
        for question, said in answers:
            if isinstance(said, TooLongError):
                logger.warning("question %s is left out: %s", question.id, said)
            else:
                yield said


def _answers_here(
    settings: AnswerSettings, questions: Sequence[BenchQuestion], model_id: str, devices: Sequence[str]
) -> Generator[tuple[BenchQuestion, Said], None, None]:
    answerer = Answerer(settings)
    answerer.warm_up(questions)
    for question in questions:
        try:
            said: Said = answerer.answer(question, model_id)
        except TooLongError as refusal:
            said = refusal
        yield question, said


def devices_of(total: int, per_model: int) -> list[str]:
    """Return CUDA_VISIBLE_DEVICES for every process, of those that this one sees; "" for none."""
    if total == per_model:
        return [""]
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if os.environ.get("CUDA_VISIBLE_DEVICES") else None
    names = seen or [str(number) for number in range(torch.cuda.device_count())]
    return [",".join(names[start : start + per_model]) for start in range(0, total, per_model)]


def with_alpha(record: dict[str, Any]) -> dict[str, Any]:
    """Add to every choice how many drafts accepted n tokens (`alpha_num`), and how many of them one more (`alpha`).

    Their ratios are n-α for n = 0, 1, …; see the EAGLE paper, section 4.1.
    """
    deepest = max(map(len, record["made"]["tree"]))
    for choice in record["choices"]:
        reached = [sum(count >= depth for count in choice["accepted"]) for depth in range(deepest + 1)]
        choice |= {"alpha": reached[1:], "alpha_num": reached[:-1]}
    return record


def sort_file(file: RecordFile) -> None:
    """Write a file's lines anew in the order of question ids, as the reference does at the end."""
    order = sorted(file.records, key=lambda one: (isinstance(one["question_id"], str), one["question_id"]))
    if order != file.records:
        write_text(file.path, "".join(json.dumps(record) + "\n" for record in order))


def run(kind: str, family: str, args: argparse.Namespace) -> None:
    """Answer all that is not yet answered."""
    settings = settings_of(kind, family, args)
    name = args.model_id or Path(settings.ea_model_path or settings.base_model_path).name
    model_id = f"{name}-temperature-{settings.temperature}"
    found = load_questions(args.bench_name)
    questions = found.questions[args.question_begin : args.question_end]
    if not questions:
        raise ValueError(f"--question-begin and --question-end leave none of {len(found.questions)} questions")
    path = args.answer_file or Path(found.name) / f"{model_id}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = RecordFile(path)
    known = finished(file, settings, model_id, questions)
    path.open("ab").close()  # a place that cannot be written is found before the model is loaded
    left = [question for question in questions if question.id not in known]
    sys.stdout.write(f"{found.name} from {found.source}: {len(left)} of {len(questions)} questions into {path}\n")
    sys.stdout.flush()
    if left:
        devices = devices_of(args.num_gpus_total, args.num_gpus_per_model)
        with (
            tqdm(total=len(questions), initial=len(questions) - len(left), unit="question", disable=None) as bar,
            closing(answered(settings, left, model_id, devices)) as answers,
        ):
            for record in answers:
                file.add(with_alpha(record) if kind == "ea_alpha" else record)
                bar.update()
    sort_file(file)
    sys.stdout.write(f"{path}: {len(file.records)} answers\n")


def command(kind: str, family: str, argv: Sequence[str] | None = None) -> int:
    """Run `gen_KIND_FAMILY`."""
    options = parser(kind, family)
    args = options.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        run(kind, family, args)
    except (ValueError, NotImplementedError, OSError, ImportError, RuntimeError) as refusal:
        options.error(str(refusal).partition("\n")[0])
    except KeyboardInterrupt:
        return interrupts.say("finished answers are kept", f"eagle.evaluation.gen_{kind}_{family}", argv)
    return 0
