"""Queries before rotary embedding, and their embedding at other positions.

What a layer attends with comes after the embedding. Here the layer's own projection is
heard, and the model's own functions embed what it said again: at the text's positions,
to see that nothing else happens to a query, and at positions to come.
"""

import copy
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp import hooks
from interp.anatomy import Anatomy, Site
from interp.errors import UnsupportedModelError

Rotate = Callable[[Tensor], Tensor]
"""Turns vectors `[head, vector, d]`, all of them alike."""

ROUNDINGS = 16
"""Roundings by which queries embedded here may differ from those that attend."""


class Rotary:
    """The rotary embedding of the layer that is running."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.modules = modules
        self.calls: list[tuple[nn.Module, inspect.BoundArguments, Any]] = []
        self.angles: Any = None
        self.projected: Tensor | None = None

    def queries(self, site: Site, query: Tensor) -> Float[Tensor, "head query d"]:
        """The one text's queries as they were before they were embedded.

        Args:
            site: Whose attention is called.
            query: What it attends with, `[1, head, query, d]`.

        Raises:
            UnsupportedModelError: They cannot be told, or are not embedded as in Llama.
        """
        for plain in self._as_heads(query) if self._call else ():
            turned = self._embedded(site, plain, self.angles)
            if turned is None or turned.shape != query.shape:
                continue
            slack = ROUNDINGS * torch.finfo(query.dtype).eps * query.abs().max()
            if (turned - query).abs().max() <= slack:
                return plain[0]
        raise UnsupportedModelError(
            "Queries at other positions were asked for; those of "
            f"{site.module_name} are not a projection, perhaps a norm, and then a "
            "rotary embedding of the whole. Choose a model that is built as Llama is."
        )

    def later(self, site: Site, n_positions: int) -> Rotate:
        """The mean of the rotations to the next positions after the text.

        Args:
            site: Whose attention is called; its queries were told before.
            n_positions: How many.
        """
        assert self._call is not None, "the layer's own queries were told"
        module, given = self._call
        place = given.arguments["position_ids"]
        steps = torch.arange(1, n_positions + 1, device=place.device)
        asked = copy.copy(given)
        asked.arguments = given.arguments | {"position_ids": place[..., -1:] + steps}
        # Of a copy: some embeddings change their frequencies with the longest text.
        angles = copy.deepcopy(module).forward(*asked.args, **asked.kwargs)
        mean = tuple(part.float().mean(1, keepdim=True) for part in angles)

        def rotate(vectors: Tensor) -> Tensor:
            own = tuple(part.to(vectors) for part in mean)
            turned = self._embedded(site, vectors[None], own)
            assert turned is not None, "the layer's own queries were embedded so"
            return turned[0]

        return rotate

    @property
    def _call(self) -> tuple[nn.Module, inspect.BoundArguments] | None:
        """The embedding and what it was asked for, of the angles in use."""
        for module, given, angles in self.calls:
            if angles is self.angles and "position_ids" in given.arguments:
                return module, given
        return None

    def _as_heads(self, query: Tensor) -> Iterator[Tensor]:
        """What the projection may have meant as `[1, head, query, d]`."""
        said, (n_batch, n_heads, n_query, width) = self.projected, query.shape
        if said is None or said.numel() != query.numel():
            return
        yield said.reshape(n_batch, n_query, n_heads, width).transpose(1, 2)
        if said.shape == query.shape:
            yield said

    def _embedded(self, site: Site, vectors: Tensor, angles: Any) -> Tensor | None:
        """Vectors `[1, head, vector, d]` as the layer embeds them; None if unknown."""
        home = sys.modules[type(self.modules[site.module_name]).__module__]
        embed = getattr(home, "apply_rotary_pos_emb", None)
        if embed is None or not isinstance(angles, tuple):
            return None
        try:
            return embed(vectors, vectors, *angles)[0]
        except (TypeError, RuntimeError):  # of another kind: complex, or of a part
            return None


@contextmanager
def watching(module: nn.Module, anatomy: Anatomy) -> Iterator[Rotary]:
    """Hears the rotary embedding and the projections of queries inside the block.

    Raises:
        UnsupportedModelError: The model has none.
    """
    modules = dict(module.named_modules())
    rotary = Rotary(modules)

    def embedded(part: nn.Module, inputs: Any, options: Any, output: Any) -> None:
        given = inspect.signature(part.forward).bind(*inputs, **options)
        rotary.calls.append((part, given, output))

    def begins(part: nn.Module, inputs: Any, options: Any) -> None:
        given = inspect.signature(part.forward).bind(*inputs, **options)
        passed = given.arguments | given.arguments.get("kwargs", {})
        rotary.angles, rotary.projected = passed.get("position_embeddings"), None

    def projected(query: Tensor) -> None:
        rotary.projected = query

    embeddings = [m for m in modules.values() if _is_rotary(m)]
    if not embeddings:
        raise UnsupportedModelError(
            f"Queries at other positions were asked for; {type(module).__name__} has "
            "no rotary embedding. Choose a model that is built as Llama is."
        )
    with ExitStack() as stack:
        for part in embeddings:
            handle = part.register_forward_hook(embedded, with_kwargs=True)
            stack.callback(handle.remove)
        for site in anatomy.sites:
            owner = modules[site.module_name]
            handle = owner.register_forward_pre_hook(begins, with_kwargs=True)
            stack.callback(handle.remove)
            for name in ("q_proj", "q_norm"):  # what comes last is what is kept
                part = getattr(owner, name, None)
                if isinstance(part, nn.Module):
                    stack.enter_context(hooks.on_output(part, projected))
        yield rotary


def _is_rotary(module: nn.Module) -> bool:
    return type(module).__name__.endswith("RotaryEmbedding")
