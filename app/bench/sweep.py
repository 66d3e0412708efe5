"""`interp bench sweep`: ablating every head alone, beside the loops that people write.

Each route runs in a process of its own: TransformerLens edits the model in place.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from interp.app.bench.table import device_name, markdown
from interp.app.progress import Progress
from interp.errors import InputError, InterpError

ROUTES = {
    "lens": "TransformerLens: `run_with_hooks` on `hook_z`, a head at a time",
    "hooks": "transformers: a pre-hook on the output projection, a head at a time",
    "tap": "interp: `with AblateHeads(...)`, a forward a head",
    "whole": "`sweep(share=False)`: every run from the first block on",
    "sweep": "`sweep`",
}
"""What is timed, and how the table calls it."""


def sweep_table(
    model: str,
    n_tokens: int,
    every: int,
    threads: int,
    routes: Sequence[str] | None,
    progress: Progress,
    command: str,
) -> str:
    """The table of the routes, in Markdown.

    Args:
        model: Any reference that `interp.load` takes.
        n_tokens: Of the one text.
        every: Ablate each head whose number this divides; 1 for all.
        threads: Of the CPU.
        routes: Names of those to run; all if None.
        progress: Told of every route.
        command: How to make the table again.

    Raises:
        InputError: There is no such route.
    """
    asked = list(ROUTES) if routes is None else list(routes)
    if unknown := [name for name in asked if name not in ROUTES]:
        raise InputError(
            f"The route {unknown[0]!r} was asked for. Choose of {', '.join(ROUTES)}."
        )
    found: dict[str, dict[str, Any]] = {}
    not_run = {}
    for done, route in enumerate(asked):
        progress("measuring", done, len(asked))
        if route == "lens" and find_spec("transformer_lens") is None:
            not_run[ROUTES[route]] = "transformer-lens is not installed"
            continue
        found[route] = _measure(model, route, n_tokens, every, threads)
    progress("measuring", len(asked), len(asked))
    if not found:
        raise InputError("No route could be run. Install transformer-lens.")
    base = next(iter(found.values()))
    rows = []
    for route, words in ROUTES.items():
        if route not in found:
            continue
        own = found[route]
        pairs = zip(own["nll"], base["nll"], strict=True)
        apart = max(abs(a - b) for a, b in pairs)
        row = [words]
        for kind in ("wall", "cpu"):
            row += [f"{own[kind]:.1f}", f"{base[kind] / own[kind]:.2f}"]
        rows.append([*row, f"{apart:.1e}"])
    heads = len(base["nll"])
    return markdown(
        f"Sweep: {heads} heads of {model}, one text of {n_tokens:,} tokens, on "
        f"{device_name()}, {threads} threads",
        command,
        "one run of each. Zero ablation of each head alone, NLL of the whole text; "
        "seconds without loading; speed-up over the first row; largest difference of "
        "an NLL from the first row's, in nats.",
        ("route", "s:", "faster:", "CPU s:", "faster:", "nats apart:"),
        rows,
        not_run,
    )


def _measure(
    model: str, route: str, n_tokens: int, every: int, threads: int
) -> dict[str, Any]:
    job = [model, route, str(n_tokens), str(every), str(threads)]
    done = subprocess.run(
        [sys.executable, "-m", "interp.app.bench.sweep", *job],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.splitlines() or [f"it ended with {done.returncode}"]
        raise InterpError(f"Measuring {route} failed: {said[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def _run(model: str, route: str, n_tokens: int, every: int, threads: int) -> None:
    """One measurement, in this process; prints it as JSON."""
    import torch

    import interp
    from interp.app.bench.inputs import text_ids

    torch.set_num_threads(threads)
    loaded = interp.load(model, device="cpu")
    ids = text_ids(loaded, n_tokens).tolist()
    loop = {"lens": _lens, "hooks": _hooks, "tap": _tap}.get(route)
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.no_grad():
        if loop is None:
            nll = _sweep(loaded, ids, every, route == "sweep")
        else:
            nll = loop(loaded, torch.tensor([ids]), every)
    spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    sys.stdout.write(json.dumps({**spent, "nll": nll}) + "\n")


def _heads(loaded: Any, every: int) -> list[tuple[int, int]]:
    grid = [(s.layer, h) for s in loaded.anatomy.at("self") for h in range(s.n_heads)]
    return grid[::every]


def _lens(loaded: Any, ids: Any, every: int) -> list[float]:
    """What a TransformerLens user writes."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(
        loaded.name, hf_model=loaded.module, tokenizer=loaded.tokenizer, device="cpu"
    )
    found = []
    for layer, head in _heads(loaded, every):

        def ablate(z: Any, hook: Any, head: int = head) -> Any:
            z[:, :, head] = 0
            return z

        hooks: list[Any] = [(f"blocks.{layer}.attn.hook_z", ablate)]
        loss = bridge.run_with_hooks(ids, return_type="loss", fwd_hooks=hooks)
        found.append(float(loss))
    return found


def _hooks(loaded: Any, ids: Any, every: int) -> list[float]:
    """What a transformers user writes; the model's projections are called o_proj."""
    found = []
    for layer, head in _heads(loaded, every):
        site = loaded.anatomy.at("self")[layer]
        owner = loaded.module.get_submodule(site.module_name)
        at = slice(head * site.d_value, (head + 1) * site.d_value)

        def ablate(_module: Any, inputs: Any, at: slice = at) -> Any:
            outputs = inputs[0].clone()
            outputs[..., at] = 0
            return (outputs, *inputs[1:])

        handle = owner.o_proj.register_forward_pre_hook(ablate)
        found.append(_loss(loaded, ids))
        handle.remove()
    return found


def _tap(loaded: Any, ids: Any, every: int) -> list[float]:
    from interp.heads import HeadSet
    from interp.interventions.ablation import AblateHeads

    found = []
    for each in _heads(loaded, every):
        with AblateHeads(HeadSet.of([each], loaded.anatomy))(loaded):
            found.append(_loss(loaded, ids))
    return found


def _loss(loaded: Any, ids: Any) -> float:
    import torch

    logits = loaded.module(ids, use_cache=False).logits[0, :-1]
    return float(torch.nn.functional.cross_entropy(logits.float(), ids[0, 1:]))


def _sweep(loaded: Any, ids: list[int], every: int, share: bool) -> list[float]:
    from interp.interventions.sweeping import NONE, single_heads, sweep
    from interp.tasks.items import Item

    names = [f"L{layer}.H{head}" for layer, head in _heads(loaded, every)]
    alone = single_heads(loaded.anatomy)
    item = Item("text", tuple(ids), (1, len(ids)))
    chosen = {name: alone[name] for name in names}
    table = sweep(loaded, chosen, [item], kl=False, share=share)
    return table["nll"].drop_sel(intervention=NONE).values.ravel().tolist()


if __name__ == "__main__":
    try:
        _run(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
    except InterpError as error:
        sys.exit(str(error))
