"""Folders of heads onto the Hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError


def push_folder(
    folder: str | Path,
    repository: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    message: str | None = None,
) -> str:
    """Upload a folder to a Hub repository, which is made where it is not there; return the address of the commit.

    Args:
        folder: whose files are uploaded.
        repository: `OWNER/NAME`.
        private: who sees a repository that is made; None leaves it to the owner's default.
        token: of whom may write; None takes the one of `hf auth login`.
        revision: branch to commit to.
        message: of the commit.

    Raises:
        ValueError: no repository can have this name.
        OSError: it may not be written, or the Hub cannot be reached.
    """
    api = HfApi(token=token)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        made = api.upload_folder(
            repo_id=repository,
            folder_path=str(folder),
            revision=revision,
            commit_message=message or "Upload an EAGLE draft head",
        )
    except HFValidationError as failure:
        raise ValueError(f"{repository!r} is no name of a Hub repository: OWNER/NAME is") from failure
    except Exception as failure:  # the client's errors, which differ by its release
        words = " ".join(str(failure).split())[:200]
        raise OSError(
            f"{repository!r} could not be written to ({words}): pass token= or run `hf auth login` as somebody who may"
        ) from failure
    return str(made.commit_url)
