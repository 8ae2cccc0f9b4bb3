"""Which versions: files that name them agree, every command installs the pinned ones, and what others do is told."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import transformers
import versions
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from places import ROOT

from eagle.model.support.releases import NEWEST_TESTED

MAKEFILE = (ROOT / "Makefile").read_text()
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
PINS = [Requirement(line) for line in LINES]
ENVIRONMENTS = [
    {
        "python_version": f"3.{minor}",
        "python_full_version": f"3.{minor}.1",
        "sys_platform": system,
        "platform_machine": machine,
    }
    for minor in range(10, 15)
    for system, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("win32", "AMD64"))
]
needs_make = pytest.mark.skipif(not shutil.which("make"), reason="needs make")


def setting(name: str) -> str:
    """Return a variable of the Makefile."""
    (value,) = re.findall(rf"^{name} := (.*)$", MAKEFILE, flags=re.MULTILINE)
    return value


def pins(environment: dict[str, str] | None = None) -> dict[str, Version]:
    """Return the versions that hold in an environment, by default this one."""
    here = [pin for pin in PINS if pin.marker is None or pin.marker.evaluate(environment)]
    assert max(Counter(pin.name for pin in here).values()) == 1
    return {pin.name: Version(str(pin.specifier).removeprefix("==")) for pin in here}


def make(*arguments: str, folder: Path = ROOT, **variables: str) -> subprocess.CompletedProcess:
    """Run make as from a shell of its own, whatever runs the tests."""
    ours = ("MAKE", "MFLAGS", "PIP_", "PYTHON", "VENV", "VERSION")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env={**environment, **variables}, capture_output=True, text=True
    )


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A folder, with a space in its name, that has what the Makefile reads, and both stamps."""
    folder = tmp_path / "a checkout"
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        folder.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder)
        os.utime(folder / name, (1, 1))
    script(folder / ".venv/bin/pip", "")
    script(folder / ".venv/bin/python", "echo python: $*")
    for stamp in (".core", ".all"):
        (folder / ".venv" / stamp).touch()
    return folder


def test_makefile_readme_and_dependencies_name_the_same_oldest_transformers():
    (line,) = re.findall(r'"(transformers[<>=][^"]*)"', (ROOT / "pyproject.toml").read_text())
    (bound,) = Requirement(line).specifier
    oldest = setting("OLDEST")
    assert bound.operator == ">=" and Version(bound.version) == Version(oldest)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"transformers {'.'.join(oldest.split('.')[:2])} or newer" in readme and f"with {oldest}" in readme
    assert Version(transformers.__version__) >= Version(oldest)


def test_the_pinned_transformers_is_the_newest_tested_wherever_python_allows():
    assert setting("NEWEST") == NEWEST_TESTED and versions.pinned() == Version(NEWEST_TESTED)
    for environment in ENVIRONMENTS:
        if environment["python_version"] != "3.10":
            assert pins(environment)["transformers"] == Version(NEWEST_TESTED)


def test_readme_and_page_name_the_pinned_versions():
    for name in ("README.md", "docs/versions.md"):
        text = " ".join((ROOT / name).read_text(encoding="utf-8").split())
        assert f"transformers {setting('NEWEST')}" in text and f"torch {setting('TORCH')}" in text
    oldest_python = pins(ENVIRONMENTS[0])["transformers"]
    assert f"on 3.10 pip takes {oldest_python}" in (ROOT / "docs/versions.md").read_text(encoding="utf-8")


def test_makefile_and_package_ask_for_the_same_python():
    (minor,) = re.findall(r'^requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert f"sys.version_info < (3, {minor})" in MAKEFILE and f"--python-version 3.{minor} " in MAKEFILE


def test_every_constraint_is_an_exact_release_from_anywhere():
    for pin in PINS:
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and not specifier.version.endswith(".*"), pin
        assert Version(specifier.version).local is None, pin
        assert pin.url is None and not pin.extras and pin.name == canonicalize_name(pin.name), pin


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda environment: "-".join(environment.values()))
def test_constraints_have_one_version_of_everything_this_package_names(environment):
    text = (ROOT / "pyproject.toml").read_text()
    held = pins(environment)
    assert held["torch"] == Version(setting("TORCH"))
    requirements = [Requirement(line) for line in importlib.metadata.requires("eagle-decoding")]
    (built_with,) = re.findall(r"^requires = \[(.*)\]", text, flags=re.MULTILINE)
    requirements += [Requirement(line) for line in re.findall(r'"([^"]*)"', built_with)]
    for requirement in requirements:
        name, extra = canonicalize_name(requirement.name), {**environment, "extra": "dev"}
        if name != "eagle-decoding" and (requirement.marker is None or requirement.marker.evaluate(extra)):
            assert requirement.specifier.contains(held[name]), requirement


def closure(name: str, extras: frozenset[str], seen: dict[str, set[str]]) -> dict[str, set[str]]:
    """Add every distribution that an installed one requires here, itself included, with the extras asked of it."""
    if name in seen and extras <= seen[name]:
        return seen
    seen.setdefault(name, set()).update(extras)
    for requirement in map(Requirement, importlib.metadata.requires(name) or ()):
        asked = [requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)]
        if any(asked):
            closure(canonicalize_name(requirement.name), frozenset(requirement.extras), seen)
    return seen


@pytest.mark.skipif("PIP_CONSTRAINT" not in os.environ, reason="the environment is not that of the Makefile")
def test_all_that_is_installed_for_this_package_is_what_the_constraints_say():
    held = pins()
    needed = set(closure("eagle-decoding", frozenset({"dev"}), {})) - {"eagle-decoding"}
    assert {"torch", "deepspeed", "ruff", "sympy", "fschat"} <= needed
    assert needed <= set(held)
    for name in needed:
        assert SpecifierSet(f"=={held[name]}").contains(importlib.metadata.version(name)), name


@needs_make
@pytest.mark.parametrize("outside", [{}, {"PIP_CONSTRAINT": "something/else"}])
def test_every_pip_that_make_runs_has_the_constraints(checkout, outside):
    (checkout / "show.mk").write_text("show:\n\t@env\n")
    shown = make("-f", "Makefile", "-f", "show.mk", "show", folder=checkout, **outside).stdout
    address = (checkout / "constraints.txt").as_uri()
    assert f"\nPIP_CONSTRAINT={address}\n" in shown and f"\nPIP_BUILD_CONSTRAINT={address}\n" in shown
    # Two go another way: another transformers has dependencies of its own, and what writes the pins is not among them.
    others = re.findall(r"^\s.*PIP_(?:BUILD_)?CONSTRAINT=(\S*) .*call pip,(.*)\)$", MAKEFILE, flags=re.MULTILINE)
    assert others == [
        ("$(@D)/constraints.txt", '--target $(@D) "transformers==$*"'),
        ("", '--target build/uv-$(UV) "uv==$(UV)"'),
    ]
    # And environments of other trainers' packages and of harnesses, which want releases of their own.
    rules = ("$(INTEROP)/%/.installed: |", "$(HARNESSES)/env/.installed: |")
    trainers, harnesses = (MAKEFILE[MAKEFILE.index(rule) :].partition("\n\n")[0] for rule in rules)
    for what, here in (("PIP_CONSTRAINT=", len(others)), ("pip install", 1)):
        assert MAKEFILE.count(what) == here + trainers.count(what) + harnesses.count(what)
    assert "torch==$(TORCH)" in trainers and "torch==$(TORCH)" in harnesses


@needs_make
@pytest.mark.parametrize("changed", ["constraints.txt", "pyproject.toml"])
@pytest.mark.parametrize(
    "target, wanted", [("demo", ["--editable ."]), ("test", ["--editable .", '--editable ".[dev]"'])]
)
def test_the_demo_installs_no_extra_and_a_changed_pin_or_requirement_installs_anew(checkout, target, wanted, changed):
    def installs() -> list[str]:
        return re.findall(r"pip install .*off (.*?) >", make("--dry-run", target, folder=checkout).stdout)

    assert installs() == []
    (checkout / changed).touch()
    stamped = (checkout / ".venv/.core").stat().st_mtime + 10
    os.utime(checkout / changed, (stamped, stamped))
    assert installs() == wanted


@needs_make
def test_what_pip_says_goes_to_the_log_and_the_demo_is_all_that_follows_our_lines(checkout):
    (checkout / ".venv/.core").unlink()
    script(checkout / ".venv/bin/python", 'case "$*" in *pip*) echo a notice; echo another >&2;; *) echo demo;; esac')
    done = make("demo", folder=checkout)
    first, *rest = done.stdout.splitlines()
    assert first.startswith("eagle: installing torch and the core") and rest == ["demo"]
    assert done.returncode == 0 and not done.stderr
    assert (checkout / ".venv/install.log").read_text() == "a notice\nanother\n"
    os.utime(checkout / "constraints.txt")
    os.utime(checkout / ".venv/.core", (1, 1))
    assert make("demo", folder=checkout).stdout.startswith("eagle: bringing torch and the core up to date; ")


@needs_make
def test_what_pip_said_last_is_shown_where_it_fails_and_make_fails(checkout):
    (checkout / ".venv/.core").unlink()
    script(checkout / ".venv/bin/python", "seq 100; exit 3")
    done = make("demo", folder=checkout)
    said = done.stderr.splitlines()
    assert done.returncode and said[14:16] == ["100", "eagle: pip failed; all it said is in .venv/install.log"]
    assert not (checkout / ".venv/.core").exists()


@needs_make
@pytest.mark.parametrize(
    "python, words",
    [
        (None, "no ./python here"),
        ('case "$*" in *version_info*) exit 1;; esac', "is older than 3.10"),
        ('case "$*" in *ensurepip*) echo no such module >&2; exit 1;; esac', "apt install python3-venv"),
    ],
)
def test_a_python_that_will_not_do_is_told_in_one_line(checkout, python, words):
    shutil.rmtree(checkout / ".venv")
    if python is not None:
        script(checkout / "python", python)
    done = make("PYTHON=./python", "demo", folder=checkout)
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode and not done.stdout and len(said) == 1
    assert said[0].startswith("eagle: ") and words in said[0]
    assert not (checkout / ".venv").exists()


@needs_make
def test_another_transformers_is_installed_beside_the_environment_with_the_same_torch(checkout):
    script(checkout / ".venv/bin/python", 'echo "$PYTHONPATH" "$PIP_CONSTRAINT" "$@" >>calls')
    folder = "build/transformers-5.12.1"
    done = make("test-with", "VERSION=5.12.1", folder=checkout)
    assert done.returncode == 0 and done.stdout == f"eagle: installing transformers 5.12.1 in {folder}\n"
    install, check, run = (checkout / "calls").read_text().splitlines()
    assert install.startswith(f" {folder}/constraints.txt -m pip install")
    assert install.endswith(f"--target {folder} transformers==5.12.1")
    assert {Requirement(line).name for line in (checkout / folder / "constraints.txt").read_text().split()} == {
        "torch",
        "setuptools",
        "wheel",
    }
    assert check.startswith(folder) and "__version__ == '5.12.1'" in check
    assert run.startswith(folder) and "contract and not nightly" in run and "build/versions/5.12.1.xml" in run
    make("test-with", "VERSION=5.12.1", folder=checkout)
    assert len((checkout / "calls").read_text().splitlines()) == 5
    assert "make test-with VERSION=" in make("test-with", folder=checkout).stderr


@needs_make
@pytest.mark.parametrize("answer", ["transformers (5.99.1)", ""])
def test_the_newest_is_asked_for_every_time(checkout, answer):
    script(checkout / ".venv/bin/python", f'echo "$@" >>calls; case "$*" in *index*) echo "{answer}";; esac')
    for _ in range(2):
        done = make("test-newest", folder=checkout)
    calls = (checkout / "calls").read_text()
    assert calls.count("index versions transformers") == 2
    if answer:
        assert done.returncode == 0 and "eagle: the newest transformers is 5.99.1\n" in done.stdout
        assert calls.count("transformers==5.99.1\n") == calls.count("build/versions/5.99.1.xml") == 2
    else:
        assert done.returncode and "no answer" in done.stderr and "install" not in calls


NEWEST = "echo 'eagle: the newest transformers is 5.99.1'"
SUMMARY = "echo '1 failed, 2 passed in 3.00s'"


@pytest.mark.parametrize(
    "newest, report",
    [
        (f"{NEWEST}; {SUMMARY}", "5.99.1: contract tests passed"),
        (f"{NEWEST}; {SUMMARY}; echo FAILED a; exit 2", "5.99.1: contract tests FAILED: reported, not counted"),
        (f"{NEWEST}; echo eagle: pip failed; exit 2", "5.99.1: could not be installed"),
        ("exit 2", "could not be reached"),
    ],
)
@pytest.mark.parametrize("failing", [None, "lint", "test", "test-oldest"])
def test_ci_reports_the_newest_transformers_and_counts_all_else(tmp_path, newest, report, failing):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci")
    text = f'case "$1" in test-newest) {newest};; {failing}) exit 2;; *) echo "5 passed ($1)";; esac'
    path = f"{script(tmp_path / 'bin/make', text).parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", ".ci/run"], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    if failing:
        assert done.returncode and "newest" not in done.stdout
        return
    *before, last = done.stdout.splitlines()
    assert done.returncode == 0 and last == f"newest transformers{':' * report.startswith('could')} {report}"
    assert "5 passed (test-oldest)" in before and not any("failed" in line for line in before)


TESTS = """
import pytest
def test_a(): pass
def test_b(): pass
def test_c(): pytest.skip("not here")
def test_d(): assert not {failing}
@pytest.fixture
def broken(): assert not {failing}
def test_e(broken): pass
"""


@pytest.mark.parametrize("failing", [True, False])
def test_the_table_has_what_pytest_counted(tmp_path, failing):
    (tmp_path / "test_some.py").write_text(TESTS.format(failing=failing))
    subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "1", "--junitxml", "5.9.0.xml"], cwd=tmp_path, capture_output=True
    )
    report = versions.read(tmp_path / "5.9.0.xml")
    assert report == (versions.Report("5.9.0", 2, 1, 2) if failing else versions.Report("5.9.0", 4, 1, 0))
    later = versions.Report("5.10.0", 7, 0, 0)
    rows = versions.table([later, report], Version("5.9.0")).splitlines()[2:4]
    assert [row.split(" | ")[0] for row in rows] == ["| 5.9.0", "| 5.10.0"]
    assert ("do not use" in rows[0]) == failing and ("every test" in rows[0]) != failing
    assert "loading checks" in rows[1]


def test_the_table_is_not_written_where_a_version_has_no_report(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"above\n{versions.BEGIN}Nothing yet.\n{versions.END}below\n")
    monkeypatch.setattr(versions, "PAGE", page)
    suite = '<testsuites><testsuite tests="3" skipped="1" failures="0" errors="0"/></testsuites>'
    (tmp_path / "5.0.0.xml").write_text(suite)
    with pytest.raises(SystemExit):
        versions.main(["--write", str(tmp_path), "5.0.0", "5.1.0"])
    assert "5.1.0" in capsys.readouterr().err and "Nothing yet" in page.read_text()
    versions.main(["--write", str(tmp_path), "5.0.0"])
    text = page.read_text()
    assert "| 5.0.0 | 2 | 1 | 0 |" in text and "Nothing yet" not in text
    assert text.startswith("above\n") and text.endswith("below\n") and versions.rewrite(text, "new\n") != text


def test_no_supported_version_of_the_page_fails():
    page = versions.PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (5\.[\d.]+) \| (\d+) \| \d+ \| (\d+) \|", page, flags=re.MULTILINE)
    for version, passed, failed in rows:
        if Version(setting("OLDEST")) <= Version(version) <= Version(setting("NEWEST")):
            assert int(passed) and not int(failed), version
    if rows:
        assert {version for version, _, _ in rows} >= {setting("OLDEST"), setting("NEWEST")}
