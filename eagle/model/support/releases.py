"""Which releases of transformers the tests vouch for, and what is said where a newer one is installed."""

import transformers
from packaging.version import Version

# All tests ran with this one; with a newer one every model is checked when it is loaded.
NEWEST_TESTED = "5.24.0"


def is_untested_release() -> bool:
    """Tell whether the installed transformers is newer than all that the tests ran with."""
    return Version(transformers.__version__) > Version(NEWEST_TESTED)


def release_in_words() -> str:
    """Return which untested release is installed, as the beginning of a sentence."""
    return (
        f"transformers {transformers.__version__} is newer than {NEWEST_TESTED}, the newest that eagle is tested with"
    )


def remedy() -> str:
    """Return what to type where the installed release does not do."""
    return f"pip install 'transformers<={NEWEST_TESTED}'"
