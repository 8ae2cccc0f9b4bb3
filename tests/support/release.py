"""A release made and tried: sdist and wheel, what is in them, and the wheel in an environment that holds nothing else.

    python tests/support/release.py [FOLDER]     # or: make release-check

The folder (`build/release`) gets `dist/` and the environment.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

from packaging.metadata import Metadata
from places import ROOT

import eagle

NAME = "eagle_decoding"
# Beside the package, what an sdist needs to build it, and what is read by people.
SOURCES = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
READ = {"CHANGELOG.md", "CITATION.cff"}
# Every module is imported, so that what an extra brings is needed by nobody who has not asked for it.
IMPORTS = """
import importlib, pkgutil, sys
import eagle
names = [found.name for found in pkgutil.walk_packages(eagle.__path__, "eagle.") if not found.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
assert not {"matplotlib", "gradio", "fastchat", "deepspeed", "peft"} & set(sys.modules)
print(f"{len(names)} modules are imported, from {eagle.__path__[0]}")
"""


def package_files() -> set[str]:
    """Return the files of the package that git knows, as they are named in an archive."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "eagle"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return {name for name in listed if (ROOT / name).is_file()}


def build(dist: Path) -> tuple[Path, Path]:
    """Build an sdist, and a wheel from it; return both."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", dist, ROOT], check=True, stdout=subprocess.DEVNULL)
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    return sdist, wheel


def check_contents(sdist: Path, wheel: Path) -> None:
    """Compare what is in the archives with what should be.

    Raises:
        AssertionError: a file is missing, or one too many.
    """
    wanted = package_files()
    root = f"{NAME}-{eagle.__version__}"
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        metadata = Metadata.from_email(archive.read(f"{root}.dist-info/METADATA"), validate=True)
    own = {name for name in inside if name.startswith(f"{root}.dist-info/")}
    _compare("wheel", inside - own, wanted)
    assert f"{root}.dist-info/licenses/LICENSE" in own, "the wheel has no licence"
    with tarfile.open(sdist) as archive:
        inside = {member.name.removeprefix(f"{root}/") for member in archive.getmembers() if member.isfile()}
    egg = {name for name in inside if name.startswith(f"{NAME}.egg-info/")}
    _compare("sdist", inside - egg - READ, wanted | SOURCES)
    assert str(metadata.version) == eagle.__version__, metadata.version
    assert metadata.description_content_type == "text/markdown" and metadata.license_expression == "Apache-2.0"
    assert metadata.description == (ROOT / "README.md").read_text(encoding="utf-8"), "README is not the description"
    for archive in (sdist, wheel):
        sys.stdout.write(f"{archive.name}: {archive.stat().st_size:,} bytes\n")


def _compare(archive: str, inside: set[str], wanted: set[str]) -> None:
    missing, extra = sorted(wanted - inside), sorted(inside - wanted)
    assert not missing and not extra, f"{archive}: missing {missing}, too many {extra}"


def try_wheel(wheel: Path, folder: Path) -> None:
    """Install the wheel into an empty environment, and do there what README says.

    Raises:
        AssertionError, CalledProcessError: something does not run.
    """
    environment = folder / "env"
    venv.create(environment, with_pip=True, clear=True)
    binaries = environment / ("Scripts" if os.name == "nt" else "bin")
    python = binaries / "python"
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables.setdefault("PIP_CONSTRAINT", (ROOT / "constraints.txt").as_uri())
    variables |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(map(str, command))}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout

    run(python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", wheel.absolute())
    run(python, "-m", "pip", "check")
    sys.stdout.write(run(python, "-I", "-c", IMPORTS))
    assert "usage" in run(binaries / "eagle", "--help").lower()
    assert eagle.__version__ in run(binaries / "eagle", "--version")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    (snippet,) = [block for block in blocks if "examples/tiny_pair" in block]
    (folder / "examples").symlink_to(ROOT / "examples", target_is_directory=True)
    printed = run(python, "-I", "-c", snippet)
    assert "τ = " in printed, printed
    sys.stdout.write(f"README's example prints {printed.splitlines()[-1]!r}\n")


def main(arguments: list[str]) -> int:
    """Build, look inside, install and try; say what was done."""
    folder = Path(arguments[0] if arguments else ROOT / "build" / "release").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sdist, wheel = build(folder / "dist")
    check_contents(sdist, wheel)
    try_wheel(wheel, folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
