"""The oldest supported transformers is named once per file, and the files agree."""

import re
from pathlib import Path

import transformers
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent


def test_makefile_readme_and_dependencies_name_the_same_oldest_transformers():
    (line,) = re.findall(r'"(transformers[<>=][^"]*)"', (ROOT / "pyproject.toml").read_text())
    (bound,) = Requirement(line).specifier
    (oldest,) = re.findall(r"^OLDEST := (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert bound.operator == ">=" and Version(bound.version) == Version(oldest)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"transformers {'.'.join(oldest.split('.')[:2])} or newer" in readme and f"with {oldest}" in readme
    assert Version(transformers.__version__) >= Version(oldest)
