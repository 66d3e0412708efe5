"""Loss of every token of many texts, untouched and under interventions."""

import threading
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from interp.editing import in_force
from interp.errors import InputError, UnsupportedModelError
from interp.evaluation import check
from interp.forward import evaluating, lean
from interp.interventions.intervention import Intervention
from interp.interventions.prefix import Prefix, Streams, twin
from interp.kernels import workers
from interp.metrics import CHUNK
from interp.models import Model
from interp.tap import tap
from interp.tasks.items import Item

Stretch = tuple[int, ...]
"""Token ids that are read on their own."""
Stretches = tuple[Stretch, ...]
"""A text, cut where it is longer than the model can read."""
Losses = Float[np.ndarray, "run token"]
"""In nats: untouched, then under each intervention; first tokens are left out."""

TOKENS = {"cpu": 256, "cuda": 16_384}
"""Tokens of a batch: more only take room."""
LOGITS = 1 << 28
"""Logits of a batch."""


def token_losses(
    model: Model,
    texts: Iterable[Stretches],
    interventions: Sequence[Intervention],
    done: Collection[Stretches] = (),
) -> Generator[tuple[Stretches, Losses], None, None]:
    """Negative log-likelihood of every token, after the true ones before it.

    Each different text is run once, the longest first, beside others of its length. A
    run under an intervention begins at the first block that this changes. On a CPU
    each worker has a core of its own and reads its own batch. What is run together
    depends on all texts and on nothing else: in any order, and after a kill, they get
    the same bits.

    Args:
        model: A decoder-only language model; it is left alone, copies of its modules
            (not of its weights) are changed.
        texts: All that there are.
        interventions: What is done to the model, one at a time.
        done: Texts that are known already; they run again only beside others.

    Yields:
        A text, and `[1 + interventions, token]` in nats.

    Raises:
        InputError: The model is edited already, or lacks what an intervention names.
        UnsupportedModelError: No decoder-only language model.
    """
    if in_force(model.module):
        raise InputError(
            "Losses were asked for inside an intervention, of which they would know "
            "nothing. Leave its block."
        )
    jobs = _jobs(model, texts)
    if not jobs:
        return
    first = Item("beginning", jobs[0][0][0][:16], (1, len(jobs[0][0][0][:16])))
    check(model, first)
    for each in interventions:
        each.check(model.anatomy)
    begins = [each.first_block(model.anatomy) for each in interventions]
    begins = begins if _can_begin_late(model, first) else [0] * len(begins)
    own = threading.local()

    def run(job: list[Stretches]) -> list[Losses]:
        if not hasattr(own, "model"):
            own.model = twin(model)
        rows = [stretch for text in job for stretch in text]
        with evaluating(own.model.module):
            parts = iter(
                [
                    losses
                    for batch in _batches(model, rows)
                    for losses in _losses(own.model, batch, interventions, begins)
                ]
            )
        return [np.concatenate([next(parts) for _ in text], 1) for text in job]

    left = [job for job in jobs if any(text not in done for text in job)]
    alone = model.device.type != "cpu" or twin(model) is model or len(jobs) == 1
    n_workers = 1 if alone else torch.get_num_threads()
    results: Any = (run(job) for job in left)
    if n_workers > 1:
        results = workers.pool(n_workers).map(run, left)
    with closing(results):  # or what waits would still run after Ctrl-C
        for job, losses in zip(left, results, strict=True):
            yield from zip(job, losses, strict=True)


def _jobs(model: Model, texts: Iterable[Stretches]) -> list[list[Stretches]]:
    """Different texts in groups that make up a batch; a long one stands alone."""
    size, jobs = 0, list[list[Stretches]]()
    most = _most(model)
    for text in sorted(set(texts), key=lambda t: (len(t[0]), t), reverse=True):
        if not jobs or size + len(text) > most // len(jobs[-1][0][0]):
            jobs.append([])
            size = 0
        jobs[-1].append(text)
        size += len(text)
    return jobs


def _batches(model: Model, rows: list[Stretch]) -> Iterator[list[Stretch]]:
    """Rows that run together, none longer than the first of all."""
    n = max(_most(model) // len(rows[0]), 1)
    return (rows[k : k + n] for k in range(0, len(rows), n))


def _most(model: Model) -> int:
    """Tokens of a batch."""
    device = model.device.type
    logits = LOGITS // (model.anatomy.vocab_size or 1)
    return min(TOKENS.get(device, TOKENS["cuda"]), logits)


def _can_begin_late(model: Model, item: Item) -> bool:
    """Whether blocks take from those before nothing but the residual stream."""
    own = twin(model)
    try:
        Prefix.of(own, item).require_shared(own)
    except UnsupportedModelError:
        return False
    return True


@torch.no_grad()
def _losses(
    model: Model,
    rows: Sequence[Stretch],
    interventions: Sequence[Intervention],
    begins: Sequence[int],
) -> list[Losses]:
    """Of each row of one batch."""
    n_tokens = max(map(len, rows))
    ids = torch.tensor([(*row, *[0] * (n_tokens - len(row))) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    options = {"input_ids": ids.to(model.device), **lean(model.module, n_tokens)}
    if lengths.min() < n_tokens:
        mask = torch.arange(n_tokens) < lengths[:, None]
        options["attention_mask"] = mask.long().to(model.device)

    def forward() -> Float[Tensor, "row token"]:
        return _nats(model.module(**options).logits, options["input_ids"])

    streams = Streams()
    with tap(model.module, lambda visit: None), streams.keeping(model, set(begins)):
        runs = [forward()]
    for each, begin in zip(interventions, begins, strict=True):
        with streams.beginning_at(model, begin), each(model):
            runs.append(forward())
    found = torch.stack(runs, 1).double().cpu().numpy()
    return [own[:, : len(row) - 1] for own, row in zip(found, rows, strict=True)]


def _nats(
    logits: Float[Tensor, "row token vocab"], ids: Tensor
) -> Float[Tensor, "row next"]:
    """Loss of every token but the first, in float32 or what is wider."""
    flat, targets = logits.flatten(0, 1), ids.roll(-1, 1).flatten()
    kind = torch.promote_types(logits.dtype, torch.float32)
    step = max(1, CHUNK // logits.shape[-1])
    parts = [
        cross_entropy(
            flat[k : k + step].to(kind), targets[k : k + step], reduction="none"
        )
        for k in range(0, len(flat), step)
    ]
    return torch.cat(parts).view_as(ids)[:, :-1]
