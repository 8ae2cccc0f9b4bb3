"""What the contract tests said with several transformers versions. Writes the table in docs/versions.md.

`make versions` runs them and then this, over the reports that pytest left, one file VERSION.xml for each version.
"""

import argparse
import platform
import re
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from xml.etree import ElementTree

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "versions.md"
BEGIN, END = "<!-- written by `make versions` -->\n", "<!-- end -->\n"


@dataclass(frozen=True)
class Report:
    """How many of the contract tests passed, were skipped and failed with a transformers version."""

    version: str
    passed: int
    skipped: int
    failed: int


def read(path: Path) -> Report:
    """Return what a file of pytest's says. Errors outside a test count as failures."""
    (suite,) = ElementTree.parse(path).getroot().iter("testsuite")
    count = {name: int(suite.attrib[name]) for name in ("tests", "skipped", "failures", "errors")}
    failed = count["failures"] + count["errors"]
    return Report(path.stem, count["tests"] - count["skipped"] - failed, count["skipped"], failed)


def pinned() -> Version:
    """Return the newest transformers of constraints.txt."""
    pins = re.findall(r"^transformers==.*$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    return max(Version(str(Requirement(pin).specifier).removeprefix("==")) for pin in pins)


def meaning(report: Report, newest_tested: Version) -> str:
    """Return in words what a report says to a user of that version."""
    if report.failed or not report.passed:
        return "the contract does not hold: do not use it"
    if Version(report.version) == newest_tested:
        return "pinned: `make test` runs every test with it"
    if Version(report.version) > newest_tested:
        return "the contract holds; loading checks every model itself"
    return "the contract holds"


def table(reports: list[Report], newest_tested: Version) -> str:
    """Return the table, oldest version first, and what it was measured with."""
    lines = ["| transformers | passed | skipped | failed | what it means |", "|---|---|---|---|---|"]
    for report in sorted(reports, key=lambda report: Version(report.version)):
        counts = f"{report.passed} | {report.skipped} | {report.failed}"
        lines.append(f"| {report.version} | {counts} | {meaning(report, newest_tested)} |")
    lines += ["", f"Measured with Python {platform.python_version()} and torch {installed('torch')}."]
    return "\n".join(lines) + "\n"


def rewrite(page: str, text: str) -> str:
    """Return the page with `text` between the two marks."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + text + END + rest.split(END)[1]


def main(argv: list[str] | None = None) -> int:
    """Write or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the reports are")
    parser.add_argument("versions", nargs="*", help="versions that must be among them")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE}")
    args = parser.parse_args(argv)
    reports = [read(path) for path in args.folder.glob("*.xml")]
    missing = sorted(set(args.versions) - {report.version for report in reports})
    if missing or not reports:
        parser.exit(1, f"eagle: no report of transformers {', '.join(missing)}; nothing is written\n")
    text = table(reports, pinned())
    if args.write:
        PAGE.write_text(rewrite(PAGE.read_text(encoding="utf-8"), text), encoding="utf-8")
    print(text, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
