"""`interp bench retrieval`: retrieval heads, beside loops over eager attention weights.

Each route runs in a process of its own. All decode the same runs greedily, a token at
a time, and score the same keys by the same criterion.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from interp.app.bench.table import device_name, markdown
from interp.app.progress import Progress
from interp.errors import InputError, InterpError

ROUTES = {
    "eager": "transformers, eager: `output_attentions=True` at each step",
    "switched": "transformers: prompt by SDPA, then eager with `output_attentions`",
    "interp": "`RetrievalHeads`",
}
"""What is timed, and how the table calls it. "switched" does as the released code."""

STEPS = 50
"""Tokens that a run may generate."""


def retrieval_table(
    model: str,
    lengths: Sequence[int],
    n_depths: int,
    threads: int,
    routes: Sequence[str] | None,
    progress: Progress,
    command: str,
) -> str:
    """The table of the routes, in Markdown.

    Args:
        model: Any reference that `interp.load` takes.
        lengths: Tokens of the haystacks.
        n_depths: Places of the needle, evenly spaced.
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
    for done, route in enumerate(asked):
        progress("measuring", done, len(asked))
        found[route] = _measure(model, route, lengths, n_depths, threads)
    progress("measuring", len(asked), len(asked))
    base = found[asked[0]]
    rows = []
    for route in asked:
        own = found[route]
        row = [ROUTES[route]]
        for kind in ("wall", "cpu"):
            row += [f"{own[kind]:.1f}", f"{base[kind] / own[kind]:.2f}"]
        pairs = zip(own["scores"], base["scores"], strict=True)
        apart = max(abs(a - b) for a, b in pairs)
        rows.append([*row, f"{own['extra'] / 2**20:,.0f}", f"{apart:.1e}"])
    sizes = ", ".join(f"{length:,}" for length in lengths)
    return markdown(
        f"Retrieval heads: {base['n_runs']} runs of {model} in {sizes} tokens, on "
        f"{device_name()}, {threads} threads",
        command,
        f"one run of each, {base['n_accepted']} of {base['n_runs']} needles found. "
        "Seconds without loading; speed-up over the first row; extra memory is the peak"
        " above the loaded model, in MiB; largest difference of a head's score from "
        "the first row's.",
        ("route", "s:", "faster:", "CPU s:", "faster:", "extra MiB:", "scores apart:"),
        rows,
    )


def _measure(
    model: str, route: str, lengths: Sequence[int], n_depths: int, threads: int
) -> dict[str, Any]:
    job = [model, route, str(n_depths), str(threads), *map(str, lengths)]
    done = subprocess.run(
        [sys.executable, "-m", "interp.app.bench.retrieval", *job],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.splitlines() or [f"it ended with {done.returncode}"]
        raise InterpError(f"Measuring {route} failed: {said[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def _run(
    model: str, route: str, n_depths: int, threads: int, lengths: Sequence[int]
) -> None:
    """One measurement, in this process; prints it as JSON."""
    import torch

    import interp
    from interp.peak import peak_memory
    from interp.tasks import Needle
    from interp.tasks.reading import ORCHARD, shipped

    torch.set_num_threads(threads)
    loaded = interp.load(model, device="cpu")
    depths = tuple((n + 0.5) / n_depths for n in range(n_depths))
    task = Needle(tuple(lengths), depths, haystack=shipped(ORCHARD))
    measure = _interp if route == "interp" else _eager
    with peak_memory() as peak:
        wall, cpu = time.perf_counter(), time.process_time()
        found = measure(loaded, task, route)
        spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    sys.stdout.write(json.dumps({**spent, **found, "extra": peak.n_bytes}) + "\n")


def _interp(loaded: Any, task: Any, route: str) -> dict[str, Any]:
    from interp.probes.retrieval import RetrievalHeads

    found = RetrievalHeads((task,), STEPS, fewest=1).run(loaded)
    counts = {name: found.attrs[name] for name in ("n_runs", "n_accepted")}
    return {**counts, "scores": found["retrieval"].values.ravel().tolist()}


def _eager(loaded: Any, task: Any, route: str) -> dict[str, Any]:
    """What a transformers user writes who knows of caches."""
    import numpy as np
    import torch

    from interp.metrics import rouge_recall

    module, tokenizer = loaded.module, loaded.tokenizer
    items, scores = task.items(loaded), []
    for item in items:
        prompt, (begin, end) = list(item.ids[: item.scored[0]]), item.spans["value"]
        ids, copied = torch.tensor([prompt], device=loaded.device), []
        with torch.no_grad():
            module.set_attn_implementation("eager" if route == "eager" else "sdpa")
            cache = module(ids[:, :-1], use_cache=True, logits_to_keep=1)
            cache = cache.past_key_values
            module.set_attn_implementation("eager")
            said, token = [], ids[:, -1:]
            while len(said) < STEPS:
                output = module(token, past_key_values=cache, output_attentions=True)
                token = output.logits[:, -1:].argmax(-1)
                said.append(int(token))
                # [layer, head]: the most attended key, where it holds the token.
                keys = torch.stack([w[0, :, -1].argmax(-1) for w in output.attentions])
                held = torch.tensor([*prompt, *said], device=keys.device)[keys]
                inside = (held == token[0]) & (keys >= begin) & (keys < end)
                copied.append(torch.where(inside, keys, -1))
                if said[-1] == tokenizer.eos_token_id:
                    break
                if (
                    "\n" in tokenizer.decode(said[-1:])
                    and tokenizer.decode(said).strip()
                ):
                    break
        text = tokenizer.decode(said, skip_special_tokens=True)
        if rouge_recall(text, item.answer) > 0.5:
            places = torch.arange(begin, end, device=copied[0].device)
            distinct = (torch.stack(copied)[..., None] == places).any(0)
            scores.append(distinct.double().mean(-1).cpu().numpy())
    mean = np.mean(scores, axis=0).ravel().tolist()
    return {"n_runs": len(items), "n_accepted": len(scores), "scores": mean}


if __name__ == "__main__":
    try:
        n_depths, threads, *lengths = map(int, sys.argv[3:])
        _run(sys.argv[1], sys.argv[2], n_depths, threads, lengths)
    except InterpError as error:
        sys.exit(str(error))
