"""The reference's commands that answer benchmark questions, over one runner: `gen_ea_answer_*` and those beside it.

Answers go into a file of JSON lines as they are finished; the same command goes on where it was. Several processes
share the questions, each with GPUs of its own; only this one writes.
"""

import argparse
import ast
import logging
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from eagle import interrupts
from eagle.evaluation.answering import Answerer, AnswerSettings, TooLongError
from eagle.evaluation.pairs import DTYPES, at_least, check_tree
from eagle.evaluation.questions import BenchQuestion, load_questions
from eagle.evaluation.record_file import RecordFile
from eagle.files import differing, whole_file
from eagle.model import choices

logger = logging.getLogger(__name__)
CHAIN = [[0] * length for length in range(1, 6)]
"""What n-α is measured with: five tokens one after the other, the head's first choice each."""


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
    parser = argparse.ArgumentParser(prog=f"python -m eagle.evaluation.{name}", description=f"{KINDS[kind]}, {family}.")
    drafts = kind != "baseline_answer"
    parser.add_argument("--base-model-path", required=True)
    parser.add_argument("--ea-model-path", required=drafts, help=None if drafts else "not needed, and not loaded")
    parser.add_argument("--use_eagle3", "--use-eagle3", action="store_true", help="insist on an EAGLE-3 head")
    parser.add_argument("--model-id", help="name in the answers (default: the model's folder)")
    parser.add_argument("--bench-name", default="mt_bench", help="set of questions, or a file of JSON lines")
    parser.add_argument("--question-begin", type=int, help="number of the first question, from 0")
    parser.add_argument("--question-end", type=int, help="number after the last one")
    parser.add_argument("--answer-file", type=Path, help="default: BENCH_NAME/MODEL_ID-temperature-T.jsonl")
    parser.add_argument("--max-new-token", type=int, default=1024, help="per turn")
    parser.add_argument("--total-token", type=int, default=about.total_token, help="nodes of the tree, root included")
    parser.add_argument("--depth", type=int, default=about.depth, help="expansions of the tree after the first")
    parser.add_argument("--top-k", type=int, default=about.top_k, help="children per expanded node")
    parser.add_argument(
        "--tree-choices",
        help="a static tree: mc_sim_7b_63, or a list of paths such as [[0],[0,0]]"
        + (" (default: a chain of five)" if kind == "ea_alpha" else " (default: dynamic)"),
    )
    parser.add_argument("--num-choices", type=int, default=1, help="answers to every question")
    parser.add_argument("--num-gpus-per-model", type=int, default=1)
    parser.add_argument("--num-gpus-total", type=int, default=1, help="questions are split over them")
    parser.add_argument("--max-gpu-memory", help="for weights, per GPU, as 40GiB")
    parser.add_argument("--load-in-8bit", action="store_true")
    parser.add_argument("--load-in-4bit", action="store_true")
    parser.add_argument("--temperature", type=float, default=about.temperature)
    parser.add_argument("--dtype", choices=DTYPES, help="default: float16 on a GPU, float32 on a CPU")
    parser.add_argument(
        "--template", default=about.template, help="one of FastChat's; default: %(default)s, or its own"
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
    check_tree([args.total_token], args.depth, args.top_k)
    if args.load_in_8bit and args.load_in_4bit:
        raise ValueError("--load-in-8bit and --load-in-4bit exclude each other")
    if args.num_gpus_total % args.num_gpus_per_model:
        raise ValueError("--num-gpus-total must be a multiple of --num-gpus-per-model")
    if args.num_gpus_total > max(1, torch.cuda.device_count()):
        raise ValueError(f"--num-gpus-total={args.num_gpus_total}: there are {torch.cuda.device_count()} GPUs here")
    tree: Any = CHAIN if kind == "ea_alpha" else "dynamic"
    return AnswerSettings(
        base_model_path=args.base_model_path,
        ea_model_path=args.ea_model_path if kind != "baseline_answer" else None,
        use_eagle3=True if args.use_eagle3 else None,
        tree=tree if args.tree_choices is None else tree_choices(args.tree_choices),
        total_token=args.total_token,
        depth=args.depth,
        top_k=args.top_k,
        temperature=args.temperature,
        max_new_token=args.max_new_token,
        num_choices=args.num_choices,
        template=args.template,
        system_message=args.system_message,
        is_llama3=FAMILIES[family].is_llama3,
        one_turn=FAMILIES[family].one_turn,
        dtype=args.dtype or ("float16" if torch.cuda.is_available() else "float32"),
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
        except (ValueError, SyntaxError):
            found = None
    if not isinstance(found, list | tuple):
        raise ValueError(f"--tree-choices={words} is no name of a tree, and no list of paths")
    return [list(path) for path in found]


def finished(file: RecordFile, settings: AnswerSettings, model_id: str) -> set[int | str]:
    """Return the ids of the questions that a file answers.

    Raises:
        ValueError: its answers are of other settings.
    """
    for number, record in enumerate(file.records, start=1):
        if missing := [name for name in ("question_id", "choices", "made") if name not in record]:
            raise ValueError(f"{file.path} line {number} has no {missing[0]}: choose another --answer-file")
        made, wanted = (
            {**record["made"], "model_id": record.get("model_id")},
            {**asdict(settings), "model_id": model_id},
        )
        if others := differing(made, wanted):
            raise ValueError(f"{file.path} line {number} was made with {others}: choose another --answer-file")
    return {record["question_id"] for record in file.records}


def answered(
    settings: AnswerSettings, questions: Sequence[BenchQuestion], model_id: str, devices: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield records as they are finished; questions that are too long for the base are named and left out.

    Args:
        settings: what decides an answer.
        questions: those to answer.
        model_id: name in the records.
        devices: CUDA_VISIBLE_DEVICES of every process; of one, this process answers itself.
    """
    if len(devices) == 1:
        answerer = Answerer(settings)
        answerer.warm_up(questions[0])
        for question in questions:
            try:
                yield answerer.answer(question, model_id)
            except TooLongError as refusal:
                logger.warning("question %s is left out: %s", question.id, refusal)
        return
    context = multiprocessing.get_context("spawn")
    places: Any = context.Queue()
    for one in devices:
        places.put(one)
    with ProcessPoolExecutor(len(devices), context, _begin, (places, settings, questions[0], os.getpid())) as pool:
        waiting = {pool.submit(_answer, question, model_id): question for question in questions}
        try:
            for done in as_completed(waiting):
                record = done.result()
                if isinstance(record, str):
                    logger.warning("question %s is left out: %s", waiting[done].id, record)
                else:
                    yield record
        except BrokenProcessPool as failure:
            raise RuntimeError("a process that answers has died: what it said stands above") from failure
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_answerer: Answerer


def _begin(places: Any, settings: AnswerSettings, question: BenchQuestion, parent: int) -> None:
    """Load the model of one process, where it has been given GPUs before torch looks for any."""
    global _answerer
    interrupts.hear()
    visible = places.get()
    if visible:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    _answerer = Answerer(settings)
    _answerer.warm_up(question)


def _answer(question: BenchQuestion, model_id: str) -> dict[str, Any] | str:
    try:
        return _answerer.answer(question, model_id)
    except TooLongError as refusal:
        return str(refusal)


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
    for choice in record["choices"]:
        reached = [sum(count >= depth for count in choice["accepted"]) for depth in range(len(CHAIN) + 1)]
        choice |= {"alpha": reached[1:], "alpha_num": reached[:-1]}
    return record


def sort_file(file: RecordFile) -> None:
    """Write a file's lines anew in the order of question ids, as the reference does at the end."""
    lines = {str(record["question_id"]): record for record in file.records}
    order = sorted(lines.values(), key=lambda one: (isinstance(one["question_id"], str), one["question_id"]))
    with whole_file(file.path) as unfinished:
        sorted_file = RecordFile(unfinished)
        for record in order:
            sorted_file.add(record)


def run(kind: str, family: str, args: argparse.Namespace) -> Path:
    """Answer all that is not yet answered; return the file."""
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
    known = finished(file, settings, model_id)
    left = [question for question in questions if question.id not in known]
    sys.stdout.write(f"{found.name} from {found.source}: {len(left)} of {len(questions)} questions into {path}\n")
    sys.stdout.flush()
    if left:
        devices = devices_of(args.num_gpus_total, args.num_gpus_per_model)
        with tqdm(total=len(questions), initial=len(questions) - len(left), unit="question", disable=None) as bar:
            for record in answered(settings, left, model_id, devices):
                file.add(with_alpha(record) if kind == "ea_alpha" else record)
                bar.update()
        sort_file(file)
    return path


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
