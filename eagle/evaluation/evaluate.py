"""Evaluate a pair on sets of questions: speed-ups, acceptance, equal ids, with intervals and pictures.

    eagle eval --base-model-path TARGET --ea-model-path HEAD [HEAD ...] --questions mt_bench gsm8k FILE.jsonl --out OUT

Every question is asked of every method, one after the other, before the next one; what is finished is kept in OUT, and
the same command goes on where it was. More questions, sets and temperatures may be asked for later. Writes report.md,
report.json, report.csv and pictures into OUT.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from eagle import progress
from eagle.chat import Template, choose_template
from eagle.commands.evaluate import COMMAND
from eagle.commands.running import run
from eagle.evaluation.eval_folder import open_records, write_report
from eagle.evaluation.methods import Method, choose_methods
from eagle.evaluation.pairs import (
    BenchPair,
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
from eagle.evaluation.report import at, check_json, give, without_nan
from eagle.evaluation.scores import differences, score_all

# What a run may be gone on with otherwise: everything else decides what a record means.
EXTENDABLE = (
    *("questions", "num_questions", "temperature", "out", "questions_folder"),
    *("json", "quiet", "command_line"),
)
Evaluation = tuple[list[QuestionRecord], list[str]]
"""Records of all questions, and the methods whose ids must be those of `generate` when they sample, too."""


def check(args: SimpleNamespace) -> None:
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
    check_json(args)


def load_sets(args: SimpleNamespace) -> list[QuestionSet]:
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


def template_of(pair: BenchPair, args: SimpleNamespace) -> Template | None:
    """Return the template that questions are asked with; None for plain text.

    Raises:
        ValueError: the tokenizer has none, and nothing says what to do about it.
    """
    template = None if args.as_text else choose_template(pair.tokenizer, args.template)
    if template is None and not args.as_text:
        raise ValueError("the tokenizer has no chat template: name one of FastChat's by --template, or add --as-text")
    return template


def settings_of(args: SimpleNamespace, template: Template | None) -> dict[str, Any]:
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
    with progress.bar(total=len(wanted), initial=len(wanted) - sum(left), unit="question") as bar:
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
    args: SimpleNamespace, sets: Sequence[QuestionSet], pair: BenchPair, template: Template | None
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
    args: SimpleNamespace,
    sets: Sequence[QuestionSet],
    evaluation: Evaluation,
    template: Template | None,
) -> int:
    """Write and print the report; return 1 where ids differ that must be equal."""
    records, seeded = evaluation
    scores, found = score_all(records, seeded, args.max_new_token), differences(records)
    if not scores:
        raise ValueError("all questions are too long for the base's positions: lower --max-new-token")
    written, document = write_report(
        args.out,
        pair=f"{', '.join(args.ea_model_path or ())} on {args.base_model_path}"
        if args.base_model_path
        else "Tiny pair",
        sources={one.name: one.source for one in sets},
        settings=settings_of(args, template),
        command=args.command_line,
        scores=scores,
        differences=found,
    )
    sys.stdout.write(written)
    if args.json is not None:
        give(args.json, document)
    return int(args.dtype == "float32" and any(one.method in seeded for one in found))


def work(args: SimpleNamespace) -> int:
    """Evaluate and report."""
    sets = load_sets(args)
    with opened(args) as pair:
        template = template_of(pair, args)
        evaluation = evaluate(args, sets, pair, template)
    return report(args, sets, evaluation, template)


def saved(args: SimpleNamespace) -> str:
    """Say what an interrupted run has left."""
    return f"what was answered is kept in {args.out}"


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return run(COMMAND, argv)


if __name__ == "__main__":
    raise SystemExit(main())
