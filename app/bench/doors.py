"""`interp bench doors`: the same statistics through every door, and what users do now.

Users of TransformerLens and nnsight keep whole patterns and compute from them; that
computation is not in the figures of the patterns.
"""

import sys
from collections.abc import Callable
from typing import Any

from interp.app.bench.apart import apart_table, require_room_for_maps, told
from interp.app.progress import Progress
from interp.errors import InterpError

ROUTES = {
    "untraced": "forward, SDPA",
    "tap": "interp.trace: every row and column statistic, edges",
    "nnsight": "interp.trace in an nnsight trace: the same statistics",
    "lens": "interp.trace of a TransformerBridge: the same statistics",
    "original": "interp.trace of a TransformerBridge, un-bridged: the same statistics",
    "nnsight patterns": "nnsight, eager: `.save()` of every pattern",
    "lens patterns": "TransformerLens: `run_with_cache` of every pattern",
}
"""What is timed, and how the table calls it."""


def doors_table(
    model: str,
    lengths: list[int],
    repeats: int,
    threads: int,
    progress: Progress,
    command: str,
) -> str:
    """The table of all routes and lengths, in Markdown; arguments as `apart_table`."""
    return apart_table(
        "Doors", __name__, ROUTES, model, lengths, repeats, threads, progress, command
    )


def _run(model: str, route: str, length: int, repeats: int, threads: int) -> None:
    """One measurement, in this process."""
    import torch

    import interp
    from interp.app.bench.inputs import text_ids

    torch.set_num_threads(threads)
    loaded = interp.load(model, device="cpu")
    ids = text_ids(loaded, length)
    if route.endswith("patterns"):
        require_room_for_maps(loaded, length)
    work = _work(loaded, route)
    work(ids[:64])  # first calls set up threads and caches
    told(lambda: work(ids), repeats)


def _work(loaded: Any, route: str) -> Callable[[Any], object]:
    """What is done with some token ids; wrapping the model is not part of it."""
    import interp
    from interp.app.bench.inputs import forward
    from interp.capture import Capture
    from interp.doors import bridged

    capture = Capture(residual=False)
    match route.split():
        case ["untraced"]:
            return lambda ids: forward(loaded.module, ids)
        case ["tap"]:
            return lambda ids: interp.trace(loaded, ids, capture=capture)
        case ["nnsight", *patterns]:
            wrapper = _wrapped(loaded)
            if patterns:
                return lambda ids: _saved_patterns(wrapper, loaded.anatomy.sites, ids)
            return lambda ids: interp.trace(
                wrapper, ids, door="nnsight", capture=capture
            )
        case [name, *patterns]:
            bridge = bridged(loaded.module, loaded.tokenizer, loaded.name)
            if patterns:
                return lambda ids: _cached_patterns(bridge, ids)
            door: Any = "original" if name == "original" else "auto"
            return lambda ids: interp.trace(bridge, ids, door=door, capture=capture)
    raise InterpError(f"There is no route {route!r}.")


def _wrapped(loaded: Any) -> Any:
    import nnsight

    return nnsight.TransformersModel(
        loaded.module, task="text-generation", tokenizer=loaded.tokenizer
    )


def _saved_patterns(wrapper: Any, sites: Any, ids: Any) -> list[Any]:
    """As nnsight's documentation shows it, with the call found at run time."""
    import torch

    from interp.adapters.nnsight import call_of

    wrapper._module.set_attn_implementation("eager")
    with torch.no_grad(), wrapper.trace(ids[None], logits_to_keep=1):
        patterns = [call_of(wrapper, site.module_name).output[1] for site in sites]
        patterns.save()  # pyright: ignore[reportAttributeAccessIssue]
    return patterns


def _cached_patterns(bridge: Any, ids: Any) -> object:
    import torch

    with torch.no_grad():
        return bridge.run_with_cache(
            ids[None],
            return_type=None,
            names_filter=lambda name: name.endswith("hook_pattern"),
        )


if __name__ == "__main__":
    try:
        _run(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
    except InterpError as error:
        sys.exit(str(error))
