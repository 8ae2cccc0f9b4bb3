"""Notebooks run from clean: by tests, and with `--write` to renew the outputs that are shown with them.

python tests/support/notebooks.py --write [NAME...]
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from places import ROOT, environment

FOLDER = ROOT / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def executed(path: Path, folder: Path, **variables: str) -> nbformat.NotebookNode:
    """Run a copy of a notebook from its first cell on, without earlier outputs, in a kernel of its own.

    Args:
        path: of the notebook; it is left as it is.
        folder: the kernel's working directory.
        variables: environment variables of the kernel.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": str(folder)}}
    how = {"timeout": 600, "startup_timeout": 300, "coalesce_streams": True, "record_timing": False}
    client = NotebookClient(book, resources=resources, **how)
    with TemporaryDirectory() as sockets:  # in place of ports, which others may take
        kernel = client.create_kernel_manager()
        kernel.transport, kernel.ip = "ipc", f"{sockets}/kernel"
        return client.execute(env=environment(HF_HUB_OFFLINE="1", **variables))


def without_warnings(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop what installed packages warn of: it is about this machine."""
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if "site-packages" not in one.get("text", "")]
    return book


def main(names: list[str]) -> int:
    """Run notebooks and write them with what came out."""
    for path in NOTEBOOKS:
        if not names or path.stem in names:
            nbformat.write(without_warnings(executed(path, FOLDER)), path)
            sys.stdout.write(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes\n")
    return 0


if __name__ == "__main__":
    _, _write, *chosen = sys.argv
    raise SystemExit(main(chosen))
