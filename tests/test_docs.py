"""Pages as a reader uses them: commands are taken by their parsers or run, links lead somewhere, drawings are current.

A block of commands says above itself what becomes of it: `run` (run here, and prints what the next block says), `run by
FILE` (another test runs it), or `needs weights`, `network`, `minutes` or `GPU`: then its arguments alone are judged.
"""

import inspect
import re
import runpy
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import commands
import pytest
from places import ROOT
from torch import nn

from eagle import EaModel

PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
MARK = re.compile(r"run|run by (\S+\.py)|needs (weights|network|minutes|GPU)")
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
EXTRAS = set(
    re.findall(
        r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1], re.MULTILINE
    )
)
# What a shell does beside our commands; these words begin or end a loop.
SHELL = {"cat", "cd", "cp", "echo", "grep", "mkdir"}
LOOP = {"do", "done", "then", "fi"}
ELSEWHERE = {"vllm", "git", "hf"}  # programs of others: only in blocks that need something


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: where it is.
        mark: what the comment above says, None without one.
        language, text: what is fenced.
        printed: the block of text that follows at once, if one does.
    """

    page: Path
    mark: str | None
    language: str
    text: str
    printed: str | None

    @property
    def title(self) -> str:
        """A name for a test."""
        return f"{self.page.relative_to(ROOT)}: {' '.join(self.text.split()[:4])}"


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    fence = r"(?:<!-- ([^\n]*?) -->\n)?^```([\w{}]*)[^\n]*\n(.*?)^```$"
    found = list(re.finditer(fence, text, flags=re.MULTILINE | re.DOTALL))
    for number, match in enumerate(found):
        follows = found[number + 1] if number + 1 < len(found) else None
        printed = follows[3] if follows and follows[2] == "text" and follows.start() - match.end() < 700 else None
        yield Block(page, match[1], match[2], match[3], printed)


ALL = [block for page in PAGES for block in blocks(page)]
SCRIPTS = [block for block in ALL if block.language in ("bash", "shell", "sh", "console")]
RUN = [block for block in ALL if block.mark == "run"]


def lines(script: str) -> Iterator[list[str]]:
    """Yield the commands of a script as words: continued lines joined, loops, redirections and comments left out."""
    script = re.sub(r"^(cat .*?)<<'END'\n.*?^END$", r"\1", script, flags=re.MULTILINE | re.DOTALL).replace("\\\n", " ")
    variables: dict[str, str] = {}
    for line in script.splitlines():
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        read = shlex.shlex(line, posix=True, punctuation_chars=";&<>")
        read.whitespace_split = True
        for words in parts(list(read)):
            if assigned := re.fullmatch(r"([A-Z]+)=(.*)", words[0]):
                variables[assigned[1]] = assigned[2]
            elif words[0] != "for":
                yield words


def parts(words: list[str]) -> Iterator[list[str]]:
    """Yield what stands between semicolons, without the words of loops and without redirections."""
    part: list[str] = []
    skipped = False
    for word in [*words, ";"]:
        if word in (";", "&"):
            if part:
                yield part
            part = []
        elif word in (">", ">>"):
            skipped = True
            if part and part[-1].isdigit():
                part.pop()
        elif skipped:
            skipped = False
        elif part or word not in LOOP:
            part.append(word)


def judge(words: list[str], free: bool) -> None:
    """Check one command.

    Args:
        words: the command.
        free: whether programs of others are allowed.

    Raises:
        SystemExit, AssertionError: there is no such command, or it does not take these arguments.
    """
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    if program == "eagle":
        commands.of_module("eagle.cli", rest)
    elif program == "make":
        assert {word for word in rest if "=" not in word} <= TARGETS, words
    elif program == "pip":
        wanted = [word for word in rest if word.startswith("eagle-decoding") or word == "."]
        assert wanted or free, words
        for extras in re.findall(r"\[(.*)\]", " ".join(wanted)):
            assert set(extras.split(",")) <= EXTRAS, words
    elif program in ("accelerate", "torchrun", "deepspeed", "python"):
        judge_python(program, rest, free)
    else:
        assert program in SHELL or (program in ELSEWHERE and free), words


def judge_python(program: str, rest: list[str], free: bool) -> None:
    """Check what a Python is asked to run, through whatever launcher."""
    if "-m" in rest:
        module = next(word for word in rest[rest.index("-m") + 1 :] if not word.startswith("-"))
        arguments = rest[rest.index(module) + 1 :]
        if module == "pytest":
            paths = [word.split("::") for word in arguments if word.startswith("tests")]
            assert all(
                ((ROOT / path).is_file() and f"def {'::'.join(names)}" in (ROOT / path).read_text()) or not names
                for path, *names in paths
            ), rest
        elif module.startswith("eagle"):
            commands.of_module(module, arguments)
        else:
            assert free, rest
        return
    script = next(word for word in rest if word.endswith(".py"))
    arguments = rest[rest.index(script) + 1 :]
    if script == "main_deepspeed.py":
        commands.of_module("eagle.train.main_deepspeed", arguments)
    elif (ROOT / script).is_file():
        commands.of_file(ROOT / script, arguments)
    else:
        assert free, (program, rest)


@pytest.mark.parametrize("block", SCRIPTS, ids=lambda block: block.title)
def test_a_block_of_commands_says_what_becomes_of_it_and_its_arguments_are_taken(block, monkeypatch, capsys):
    mark = MARK.fullmatch(block.mark or "")
    assert mark, f"no mark above it that says whether it is run: {block.mark}"
    if mark[1]:
        assert block.page.name in (test := (ROOT / mark[1]).read_text()) or "doctor" in test
    monkeypatch.chdir(ROOT)
    for words in lines(block.text):
        judge(words, free=bool(mark[2] or mark[1]))


def asked(code: str) -> set[str]:
    """Return the options that some words give."""
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", code))


INLINE = sorted(
    {
        (str(page.relative_to(ROOT)), " ".join(code.split()))
        for page in PAGES
        for code in re.findall(
            r"(?<!`)`((?:eagle |python -m eagle|python examples)[^`]*)`(?!`)",
            re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL),
        )
        if asked(code) - {"-m"}
    }
)


@pytest.mark.parametrize(("page", "code"), INLINE)
def test_a_command_within_a_sentence_has_the_options_that_it_names(page, code):
    words = code.split()
    if words[0] == "eagle":
        main, argv = commands.main_of("eagle.cli"), [] if words[1] == "COMMAND" else words[1:2]
    elif words[1] == "-m":
        main, argv = commands.main_of(re.sub(r"\{(\w+).*", r"\1", words[2]).replace("*", "vicuna")), []
        code = code.replace(" -m ", " ")
    else:
        main, argv = commands.main_of_file(ROOT / words[1]), []
    assert asked(code) <= asked(commands.help_of(main, argv)) | {"--help"}, page


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_what_is_shown_as_python_is_python(page):
    for block in ALL:
        if block.page == page and block.language == "python":
            compile(block.text, block.title, "exec")


@pytest.mark.parametrize("block", RUN, ids=lambda block: block.title)
def test_a_block_that_is_run_does_what_the_page_says(block, tmp_path, monkeypatch, capsys):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    if block.language == "python":
        exec(compile(block.text, block.title, "exec"), {})
        assert capsys.readouterr().out == block.printed
        return
    for words in lines(block.text):
        assert words[:2] == ["python", "-m"], words
        assert commands.main_of(words[2])(words[3:]) == 0
    assert capsys.readouterr().out == (block.printed or "")


# --- links


def slug(heading: str) -> str:
    """Return the anchor that GitHub and the site give a heading."""
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """Return all anchors of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_link_within_the_project_leads_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert found.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(found), target


def test_every_page_has_a_place_in_the_site():
    listed = set()
    for index in (ROOT / "docs" / "index.md", ROOT / "docs" / "api" / "index.md"):
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", index.read_text(), flags=re.DOTALL):
            entries = [re.sub(r".*<(.*)>", r"\1", line) for line in tree.splitlines() if line and line[0] not in ":"]
            listed |= {(index.parent / f"{entry}.md").resolve() for entry in entries}
    assert listed | {ROOT / "docs" / "index.md"} >= set(PAGES)


# --- what the pages are made of


def test_the_drawings_are_what_their_script_draws(tmp_path):
    script = ROOT / "docs" / "images" / "draw.py"
    assert runpy.run_path(str(script))["main"](["--out", str(tmp_path)]) == 0
    drawn = sorted(tmp_path.glob("*.svg"))
    assert len(drawn) == len(list(script.parent.glob("*.svg")))
    for drawing in drawn:
        assert drawing.read_text(encoding="utf-8") == (script.parent / drawing.name).read_text(encoding="utf-8")


def test_the_reference_has_every_public_name_of_the_model():
    page = (ROOT / "docs" / "api" / "model.md").read_text(encoding="utf-8")
    inherited = set(dir(nn.Module))
    public = {
        name
        for owner in EaModel.__mro__
        if owner.__module__.startswith("eagle")
        for name, value in vars(owner).items()
        if not name.startswith("_") and (callable(value) or isinstance(value, property | classmethod))
    }
    listed = set(re.search(r"autoclass:: eagle.EaModel\n   :members: (.*)", page)[1].split(", "))
    assert listed == {name for name in public if name not in inherited or name == "forward"}
    assert all(inspect.getdoc(getattr(EaModel, name)) for name in listed)


def test_the_page_of_commands_has_every_command():
    page = (ROOT / "docs" / "api" / "commands.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"\{command\} (\S+)", page))
    mains = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "eagle").rglob("*.py")
        if re.search(r"^def main\(", path.read_text(), flags=re.MULTILINE) and path.stem != "__main__"
    }
    alike = {name for name in mains if re.search(r"\.gen_\w+$", name)} - {"eagle.evaluation.gen_ea_answer_vicuna"}
    assert shown == mains - alike
