"""The `eagle` command: whether trees are verified exactly on a model (`doctor`), how fast they are (`bench`, `curves`).

All but `doctor` have command lines of their own, which load torch: they are imported when they are called.
"""

import argparse
import dataclasses
import json
import logging
import sys
from importlib import import_module

ELSEWHERE = {
    "bench": ("eagle.evaluation.bench", "measure a pair against generate and plain decoding"),
    "curves": ("eagle.evaluation.curves", "time a step over tree size, depth, batch size and context length"),
    "processor": ("eagle.evaluation.processor", "time linear products on this CPU: what compile=True and bf16 bring"),
}


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="eagle", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser("doctor", help="check in seconds whether a base model, and a head, are supported")
    doctor.add_argument("--base-model-path", "--base", required=True, help="folder or Hub id of the base model")
    doctor.add_argument("--ea-model-path", help="folder or Hub id of its draft head")
    doctor.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    doctor.add_argument("--device-map", help="auto, cpu, cuda, …")
    doctor.add_argument("--attn-implementation", choices=("sdpa", "eager"))
    doctor.add_argument("--trust-remote-code", action="store_true")
    doctor.add_argument("--json", action="store_true", help="print one JSON document")
    for name, (_, words) in ELSEWHERE.items():
        commands.add_parser(name, help=words, add_help=False)
    return parser


def doctor(args: argparse.Namespace) -> int:
    """Load the model, run every check, print the report; return 0 where all passed."""
    # Imported here: --help must not wait for torch.
    from safetensors import SafetensorError

    from eagle.model.checks.diagnosis import Check, Report, diagnose
    from eagle.model.ea_model import EaModel
    from eagle.model.support.loading import load_base

    wanted = {"device_map": args.device_map, "attn_implementation": args.attn_implementation}
    options = {"dtype": args.dtype, **{name: value for name, value in wanted.items() if value is not None}}
    if args.trust_remote_code:
        options["trust_remote_code"] = True
    try:
        if args.ea_model_path is None:
            report = diagnose(load_base(args.base_model_path, options))
        else:
            model = EaModel.from_pretrained(
                base_model_path=args.base_model_path, ea_model_path=args.ea_model_path, **options
            )
            report = model.self_check()
    except (ImportError, ValueError, OSError, RuntimeError, AssertionError, SafetensorError) as refusal:
        words = str(refusal).partition("\n")[0]  # transformers goes on with a list of all it knows
        report = Report(args.base_model_path, (Check("loading", False, words),), 0.0)
    if args.json:
        sys.stdout.write(json.dumps({**dataclasses.asdict(report), "passed": report.passed}) + "\n")
    else:
        sys.stdout.write(f"{report}\n")
    return 0 if report.passed else 1


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in ELSEWHERE:
        return int(import_module(ELSEWHERE[argv[0]][0]).main(argv[1:]))
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    return doctor(args)


if __name__ == "__main__":
    raise SystemExit(main())
