"""Evaluate a pair on sets of questions: speed-ups, acceptance, equal ids, with intervals and pictures.

    eagle eval --base-model-path TARGET --ea-model-path HEAD [HEAD ...] --questions mt_bench gsm8k FILE.jsonl --out OUT

Every question is asked of every method, one after the other, before the next one; what is finished is kept in OUT, and
the same command goes on where it was. More questions, sets and temperatures may be asked for later. Writes report.md,
report.json, report.csv and pictures into OUT.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eagle import interrupts
from eagle.chat import Template, choose_template
from eagle.evaluation.eval_folder import open_records, write_report
from eagle.evaluation.methods import NAMES, Method, choose_methods
from eagle.evaluation.pairs import (
    BenchPair,
    add_assistant,
    add_model_options,
    add_tree_limits,
    at_least,
    check_choices,
    check_pair,
    check_tree,
    device_of,
    load_models,
    opened,
    positions,
)
from eagle.evaluation.question_runs import Interviewer, QuestionRecord
from eagle.evaluation.questions import BenchQuestion, QuestionSet, load_questions
from eagle.evaluation.record_file import RecordFile
from eagle.evaluation.report import at, without_nan
from eagle.evaluation.scores import differences, score_all

# What a run may be gone on with otherwise: everything else decides what a record means.
EXTENDABLE = ("questions", "num_questions", "temperature", "out", "questions_folder", "default_heads")
Evaluation = tuple[list[QuestionRecord], list[str]]
"""Records of all questions, and the methods whose ids must be those of `generate` when they sample, too."""


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="eagle eval", description=(__doc__ or "").split("\n")[0])
    add_model_options(parser)
    add_assistant(parser)
    group = parser.add_argument_group("what is asked")
    group.add_argument("--questions", nargs="+", metavar="SET", help="names of sets, or files of JSON lines")
    group.add_argument("--questions-folder", type=Path, help="where files of named sets are (default: data)")
    group.add_argument("--num-questions", type=int, help="of every set, spread evenly over it; default: all")
    group.add_argument("--template", help="one of FastChat's, where the tokenizer has none, or another than its own")
    group.add_argument("--as-text", action="store_true", help="continue first turns as plain text, without a template")
    group = parser.add_argument_group("what is run")
    group.add_argument("--methods", nargs="+", choices=tuple(NAMES), help="default: all that the heads allow")
    group.add_argument(
        "--total-token", type=int, nargs="+", default=[26, -1], help="sizes of trees, -1: automatic (default: 26 -1)"
    )
    add_tree_limits(parser)
    parser.set_defaults(depth=5, top_k=8)
    group.add_argument("--temperature", type=float, nargs="+", default=[0.0, 1.0], help="0: greedy")
    group.add_argument(
        "--max-new-token", "--max-new-tokens", type=int, default=512, help="per turn (default: %(default)s)"
    )
    group.add_argument("--rounds", type=int, default=1, help="how often every question is asked; the median counts")
    group.add_argument("--seed", type=int, default=0, help="before every answer, for sampling")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report, and of what is finished")
    return parser


def check(args: argparse.Namespace) -> None:
    """Check all options before anything is loaded.

    Raises:
        ValueError: naming the option.
    """
    at_least(1, args, "max_new_token", "rounds", "num_questions")
    at_least(0, args, "temperature")
    check_tree(args.total_token, args.depth, args.top_k)
    check_pair(args, needs_heads=False)
    check_choices(args, "methods", "total_token", "temperature", "questions")
    if args.as_text and args.template is not None:
        raise ValueError("--as-text asks without a template: leave out --template")
    if args.questions is None:
        raise ValueError("--questions: which sets? names, or files of JSON lines")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out={args.out} is a file")


def load_sets(args: argparse.Namespace) -> list[QuestionSet]:
    """Return the sets that were asked for, or so many questions of each.

    Raises:
        ValueError: two of one name.
    """
    found = [load_questions(name, args.questions_folder) for name in args.questions]
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        raise ValueError(f"--questions: two sets are called the same: {names}")
    return [QuestionSet(one.name, one.source, spread(one.questions, args.num_questions)) for one in found]


def spread(questions: Sequence[BenchQuestion], count: int | None) -> tuple[BenchQuestion, ...]:
    """Return so many questions, spread evenly over a set, whose kinds often stand one after the other."""
    count = len(questions) if count is None else min(count, len(questions))
    return tuple(questions[place * len(questions) // count] for place in range(count))


def template_of(pair: BenchPair, args: argparse.Namespace) -> Template | None:
    """Return the template that questions are asked with; None for plain text.

    Raises:
        ValueError: the tokenizer has none, and nothing says what to do about it.
    """
    template = None if args.as_text else choose_template(pair.tokenizer, args.template)
    if template is None and not args.as_text:
        raise ValueError("the tokenizer has no chat template: name one of FastChat's by --template, or add --as-text")
    return template


def settings_of(args: argparse.Namespace, template: Template | None) -> dict[str, Any]:
    """Return what decides what a record means."""
    settings = {name: value for name, value in vars(args).items() if name not in EXTENDABLE}
    settings |= {"device": device_of(args).type, "template": template.name if template is not None else None}
    return json.loads(json.dumps(settings, default=str))  # type: ignore[no-any-return]


def ask(
    interviewer: Interviewer,
    sets: Sequence[QuestionSet],
    by_temperature: dict[float, list[Method]],
    records: RecordFile,
) -> Iterator[QuestionRecord]:
    """Yield a record of every question at every temperature, those that are finished without asking again."""
    known = {(found["questions"], found["temperature"], found["asked"]): found for found in records.records}
    wanted = [(one, temperature, q) for one in sets for temperature in by_temperature for q in one.questions]
    left = [(one.name, temperature, q.key) not in known for one, temperature, q in wanted]
    if any(left):
        for chosen in by_temperature.values():
            interviewer.warm_up(wanted[left.index(True)][2], chosen)
    with tqdm(total=len(wanted), initial=len(wanted) - sum(left), unit="question", disable=None) as bar:
        for one, temperature, question in wanted:
            found = known.get((one.name, temperature, question.key))
            if found is None:
                bar.set_postfix_str(f"{one.name}, {at(temperature)}", refresh=False)
                record = interviewer.ask(one.name, question, temperature, by_temperature[temperature])
                if not record.is_too_long:  # with fewer new tokens it may not be
                    records.add(without_nan(record.to_dict()))
                bar.update()
            else:
                record = QuestionRecord.from_dict(found)
            yield record


def evaluate(
    args: argparse.Namespace, sets: Sequence[QuestionSet], pair: BenchPair, template: Template | None
) -> Evaluation:
    """Ask all that is not yet answered.

    Raises:
        ValueError: options do not go with the pair, or with what --out holds.
    """
    models = load_models(pair, args.total_token, args.depth, args.top_k)
    by_temperature = {t: choose_methods(pair.base, models, args.methods, t, pair.assistant) for t in args.temperature}
    kept = open_records(args.out, settings_of(args, template))
    interviewer = Interviewer(
        base=pair.base,
        tokenizer=pair.tokenizer,
        template=template,
        room=positions(pair.base, models),
        new=args.max_new_token,
        rounds=args.rounds,
        seed=args.seed,
    )
    records = list(ask(interviewer, sets, by_temperature, kept))
    return records, [one.name for one in by_temperature[args.temperature[0]] if one.is_seeded]


def report(
    args: argparse.Namespace,
    sets: Sequence[QuestionSet],
    evaluation: Evaluation,
    template: Template | None,
    command: Sequence[str],
) -> int:
    """Write and print the report; return 1 where ids differ that must be equal."""
    records, seeded = evaluation
    scores, found = score_all(records, seeded, args.max_new_token), differences(records)
    if not scores:
        raise ValueError("all questions are too long for the base's positions: lower --max-new-token")
    written = write_report(
        args.out,
        pair=f"{', '.join(args.ea_model_path or ())} on {args.base_model_path}"
        if args.base_model_path
        else "Tiny pair",
        sources={one.name: one.source for one in sets},
        settings=settings_of(args, template),
        command=command,
        scores=scores,
        differences=found,
    )
    sys.stdout.write(written)
    return int(args.dtype == "float32" and any(one.method in seeded for one in found))


def main(argv: list[str] | None = None) -> int:
    """Evaluate and report."""
    options = parser()
    args = options.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    command = ["eagle", "eval", *(sys.argv[1:] if argv is None else argv)]
    try:
        check(args)
        sets = load_sets(args)
        with opened(args) as pair:
            template = template_of(pair, args)
            evaluation = evaluate(args, sets, pair, template)
        return report(args, sets, evaluation, template, command)
    except (ValueError, NotImplementedError, OSError, ImportError) as refusal:
        options.error(str(refusal).partition("\n")[0])
    except KeyboardInterrupt:
        return interrupts.say(f"what was answered is kept in {args.out}", "eagle.evaluation.evaluate", argv)


if __name__ == "__main__":
    raise SystemExit(interrupts.run(main))
