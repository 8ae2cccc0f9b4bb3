"""`model.generate(..., custom_generate=REPOSITORY)`: EAGLE's draft trees on a model that is loaded already.

The ids are `generate`'s own, several of them a forward. A model keeps the heads that it was used with in one attribute,
which neither its state dict nor copies and pickles of it have; it is otherwise as it was.
"""

from typing import Any

from eagle import EaModel

# What says which head and how its trees grow, by its name in `EaModel`; `generate` has a `top_k` of its own.
OPTIONS = {
    **{name: name for name in ("total_token", "depth", "threshold", "tree", "use_eagle3", "capture_layers")},
    **{name: name for name in ("token_map", "compile", "cuda_graphs")},
    "tree_top_k": "top_k",
    "ea_revision": "revision",
}
# Of a download; `revision` is that of this file, and transformers has used it.
DOWNLOADS = ("token", "cache_dir", "local_files_only", "force_download")
KEPT, MOST = "_eagle_heads", 4


class Heads(dict[str, EaModel]):
    """Heads in use on one model, the latest last; copied and pickled as nothing."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return dict, ()


def generate(
    inputs: Any = None,
    generation_config: Any = None,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    *,
    model: Any,
    ea_model_path: str | None = None,
    **arguments: Any,
) -> Any:
    """Do what `model.generate` does with the same arguments, in fewer forwards.

    Args:
        inputs, generation_config, logits_processor, stopping_criteria, arguments: as everywhere in `generate`.
        model: the causal LM.
        ea_model_path: folder or Hub id of a draft head that was trained for it.

    Raises:
        ValueError: there is no `ea_model_path`, or the head does not fit the model.
    """
    first = {"inputs": inputs, "generation_config": generation_config}
    first |= {"logits_processor": logits_processor, "stopping_criteria": stopping_criteria}
    if callable(arguments.get("custom_generate")):
        # The model's own repository holds this file, which replaced its `generate`; eagle asks that to prepare a call.
        return type(model).generate(model, **first, **arguments)
    if ea_model_path is None:
        raise ValueError("ea_model_path must name a draft head that was trained for this model: a folder or a Hub id")
    arguments.pop("revision", None)
    options = {OPTIONS[name]: arguments.pop(name) for name in list(arguments) if name in OPTIONS}
    download = {name: arguments.pop(name) for name in DOWNLOADS if name in arguments}
    return _attached(model, str(ea_model_path), options, download).generate(**first, **arguments)


def _attached(model: Any, path: str, options: dict[str, Any], download: dict[str, Any]) -> EaModel:
    """Return the model with this head, loaded at the first call."""
    heads = vars(model).get(KEPT)
    if not isinstance(heads, Heads):
        heads = vars(model)[KEPT] = Heads()
    name = repr((path, sorted(options.items())))
    found = heads.pop(name, None)
    if found is None or found.base_model is not model:  # a shallow copy shares its original's
        found = EaModel.attach(model, path, **options, **download)
    heads[name] = found
    while len(heads) > MOST:
        del heads[next(iter(heads))]
    return found
