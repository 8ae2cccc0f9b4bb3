"""Writing a model's head to a folder or the Hub, as this package, vLLM or SGLang reads it."""

from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from eagle.model.dialects.checkpoint import readable
from eagle.model.dialects.keys import Verifier
from eagle.model.dialects.layouts import write_layout
from eagle.model.dialects.publish import push_folder


class Saving:
    """Methods of a model that has a head, under the names they have in transformers.

    Attributes:
        base_model, base_model_name_or_path, target, config: the base model and what is known of it.
        ea_layer: the drafter that holds the head.
    """

    base_model: Any
    base_model_name_or_path: str
    target: Any
    config: Any
    ea_layer: Any

    def save_pretrained(self, save_directory: str | PathLike[str], layout: str = "eagle") -> None:
        """Write the head, with a model card; `from_pretrained` takes the folder as `ea_model_path`.

        Args:
            save_directory: folder, empty or not there.
            layout: "eagle", "speculators" (what vLLM reads) or "sglang".

        Raises:
            ValueError: an unknown layout, or a folder that holds something.
            NotImplementedError: whoever reads the layout would read another head.
        """
        self._written(Path(save_directory), layout, None)

    def push_to_hub(
        self,
        repo_id: str,
        layout: str = "eagle",
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Upload the head, with a model card, to a Hub repository; return the address of the commit.

        Args:
            repo_id: `OWNER/NAME`; made where it is not there.
            layout: as in `save_pretrained`.
            private, token, revision, commit_message: as everywhere in transformers.

        Raises:
            ValueError, NotImplementedError: as `save_pretrained`, or no name of a repository.
            OSError: it may not be written, or the Hub cannot be reached.
        """
        with TemporaryDirectory() as folder:
            self._written(Path(folder) / "head", layout, repo_id)
            return push_folder(
                Path(folder) / "head",
                repo_id,
                private=private,
                token=token,
                revision=revision,
                message=commit_message,
            )

    def _written(self, folder: Path, layout: str, here: str | None) -> None:
        verifier = Verifier(
            self.base_model_name_or_path,
            tuple(self.config.architectures or (type(self.base_model).__name__,)),
            len(self.target.layers),
            getattr(self.target.config, "max_position_embeddings", None),
            readable(self.base_model.get_input_embeddings()),
        )
        write_layout(self.ea_layer.head, folder, layout, verifier, self.target.config, here=here)
