"""A model that is made to write given tokens, as a function of what it reads.

`encode` takes what is read to the encoder's outputs ("states"), `scores` those to the
log-probability of every output token. Both can be differentiated.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from interp.errors import InputError, UnsupportedModelError
from interp.models import Model
from interp.probes.crossattn.utterances import Utterance
from interp.weights import content_digest

Space = Literal["input", "states"]
Fill = Literal["silence", "mean"]

SPACES: tuple[Space, ...] = ("input", "states")


class Forced:
    """One utterance, teacher-forced.

    Attributes:
        input: What is read: features `[1, channel, frame]`, samples `[1, sample]` or
            embeddings `[1, token, channel]`.
        states: `[1, position, channel]`, the encoder's outputs; of a decoder alone
            its embeddings.
        n_positions: Positions that are no padding; they come first.
        targets: `[token]`, ids of the scored tokens.
    """

    def __init__(self, model: Model, utterance: Utterance) -> None:
        self.model, self.utterance = model, utterance
        self.module: Any = model.module
        self.is_decoder = utterance.kind == "decoder"
        places = torch.tensor(utterance.scored, device=model.device)
        self.targets, self.rows = utterance.ids[0, places], places - 1
        with torch.no_grad():
            self.input = self._read()
            self.states = self.encode(self.input)
        self.n_positions = self.states.shape[1]
        self.n_frames = self.input.shape[self.frame_axis]
        self.per_position = self.n_frames / self.n_positions
        if utterance.window is not None and self.input.dim() == 3:
            window, extractor = utterance.window, model.extractor
            real = -(-len(window.samples) // int(extractor.hop_length))
            self.n_frames = min(real, self.n_frames)
            real = -(-self.n_frames // self.per_position)
            self.n_positions = min(int(real), self.n_positions)
        if self.n_positions < 2:
            raise InputError(
                f"{utterance.name} gives {self.n_positions} position to attend to; at "
                "least two are needed. Give more of it."
            )

    @property
    def spaces(self) -> tuple[Space, ...]:
        """Where saliency is taken; a decoder alone has no encoder."""
        return SPACES[:1] if self.is_decoder else SPACES

    @property
    def frame_axis(self) -> int:
        """Time's axis of `input`: the last of features, else that of the tokens."""
        return 2 if self.has_features else 1

    @property
    def has_features(self) -> bool:
        """Whether the input is frames of channels, such as a log-mel spectrogram."""
        return self.utterance.kind == "speech" and self.input.dim() == 3

    @property
    def position_seconds(self) -> float | None:
        """Length of a position in seconds; None for tokens."""
        window = self.utterance.window
        if window is None:
            return None
        if not self.has_features:
            return self.per_position / window.rate
        return self.per_position * self.model.extractor.hop_length / window.rate

    def encode(self, inputs: Tensor) -> Tensor:
        """States `[row, position, channel]` of inputs."""
        if self.is_decoder:
            return inputs
        encoder = self.module.get_encoder()
        name = "inputs_embeds"
        if self.utterance.kind == "speech":
            name = self.module.main_input_name
        return encoder(**{name: inputs})[0]

    def logits(self, states: Tensor) -> Tensor:
        """`[row, token, vocab]`, the logits that predict the scored tokens."""
        return self._made(states).logits[:, self.rows]

    def _made(self, states: Tensor, memory: EncoderDecoderCache | None = None) -> Any:
        ids = self.utterance.ids.expand(states.shape[0], -1)
        if self.is_decoder:
            return self.module(inputs_embeds=states, use_cache=False)
        read: Any = BaseModelOutput(last_hidden_state=states)  # type: ignore[arg-type]
        read.attention_mask = None  # Moonshine asks for it
        return self.module(
            encoder_outputs=read,
            decoder_input_ids=ids if ids.shape[1] == 1 else ids[:, :-1],
            past_key_values=memory,
            use_cache=memory is not None,
        )

    def log_probabilities(self, states: Tensor) -> Tensor:
        """`[row, token, vocab]`, in nats, float32 or wider."""
        return self._log_probabilities(self.logits(states))

    @staticmethod
    def _log_probabilities(logits: Tensor) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        return logits.to(wide).log_softmax(-1)

    def scores(self, states: Tensor) -> Tensor:
        """`[row, token]`, the log-probability of each scored token in nats."""
        return self.log_probabilities(states)[:, range(len(self.targets)), self.targets]

    def own_scores(self, base: Tensor) -> Callable[[Tensor], Tensor]:
        """What each token has left where positions of its own are taken away.

        Args:
            base: `[1, position, channel]`, the states that take their place.

        Returns:
            From `[token, position]` (bool, taken away) to `[token]`, log-probability of
            each scored token in nats. The decoder is given the real positions only.
        """
        states = self.states[:, : self.n_positions]
        if self.is_decoder:
            return lambda gone: self._own(torch.where(gone[..., None], base, states))
        with torch.no_grad():
            kept, removed = self._memory(states), self._memory(base)

        def of(gone: Tensor) -> Tensor:
            # Keys and values follow from the states position by position, so those of
            # a mixture are picked instead of computed for every row.
            at = gone[:, None, :, None]
            mixed = [
                [torch.where(at, b, a) for a, b in zip(*pair, strict=True)]
                for pair in zip(kept, removed, strict=True)
            ]
            return self._own(states.expand(len(gone), -1, -1), _remembered(mixed))

        return of

    def _memory(self, states: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of cross-attention, layer by layer."""
        cache = self._made(states, _remembered([])).past_key_values
        return [(at.keys, at.values) for at in cache.cross_attention_cache.layers]

    def _own(self, states: Tensor, memory: EncoderDecoderCache | None = None) -> Tensor:
        """`[token]`, of as many rows as there are tokens: each row's own token."""
        head = self.module.get_output_embeddings()
        rows = self.rows

        def only(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            # The vocabulary is large: its logits are wanted at one row of each.
            own = inputs[0][torch.arange(len(rows)), rows]
            return own[:, None], *inputs[1:]

        every = torch.arange(len(rows), device=states.device)
        if head is None:
            wide = self._log_probabilities(self._made(states, memory).logits)
            return wide[every, rows, self.targets]
        handle = head.register_forward_pre_hook(only)
        try:
            logits = self._made(states, memory).logits[:, 0]
        finally:
            handle.remove()
        return self._log_probabilities(logits)[every, self.targets]

    def cells(self, chosen: np.ndarray) -> Tensor:
        """Positions `[position]` as cells of the input, to broadcast over it."""
        edges = np.append(self.edges, self.n_frames)
        frames = np.zeros(self.input.shape[self.frame_axis], bool)
        frames[: self.n_frames] = np.repeat(chosen, np.diff(edges))
        cells = torch.from_numpy(frames).to(self.input.device)
        if self.input.dim() == 2:
            return cells[None]
        return cells[None, None] if self.has_features else cells[None, :, None]

    def of(self, space: Space) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """What stands in a space, and the scores as a function of it."""
        stands = self.input if space == "input" else self.states

        def scores(values: Tensor) -> Tensor:
            own = values.to(stands.dtype)  # captum draws its points in float32
            return self.scores(self.encode(own) if space == "input" else own)

        return stands, scores

    def baseline(self, space: Space, fill: Fill = "silence") -> Tensor:
        """What says nothing, of the space's shape; padding stays as it is.

        Of features the value of silence, or their mean; of samples and embeddings
        zero; of states their mean over the positions.
        """
        values, _ = self.of(space)
        base = values.clone()
        if space == "states" and not self.is_decoder:
            real = values[:, : self.n_positions]
            base[:, : self.n_positions] = real.mean(1, keepdim=True)
        elif self.has_features:
            real = values[..., : self.n_frames]
            base[..., : self.n_frames] = (
                values.amin() if fill == "silence" else real.mean()
            )
        else:
            base.zero_()
        return base

    def positions(self, frames: np.ndarray, pool: str = "max") -> np.ndarray:
        """Magnitudes `[..., frame]` brought to positions, by maximum or mean."""
        edges = self.edges
        reduce = np.maximum.reduceat if pool == "max" else np.add.reduceat
        found = reduce(frames[..., : self.n_frames], edges, axis=-1)
        widths = np.diff(np.append(edges, self.n_frames))
        return found if pool == "max" else found / widths

    @property
    def edges(self) -> np.ndarray:
        """First frame of every position."""
        return np.rint(np.arange(self.n_positions) * self.per_position).astype(int)

    def _read(self) -> Tensor:
        if self.utterance.kind == "speech":
            return self.utterance.inputs[self.module.main_input_name]
        if self.is_decoder:
            return self.module.get_input_embeddings()(self.utterance.ids)
        [ids] = self.utterance.inputs.values()
        encoder = self.module.get_encoder()
        wanted = encoder(input_ids=ids)[0]
        embedded = encoder.get_input_embeddings()(ids)
        # Some families scale their embeddings outside of the table (Marian).
        for scale in (1.0, getattr(encoder, "embed_scale", 1.0)):
            if torch.allclose(encoder(inputs_embeds=embedded * scale)[0], wanted):
                return embedded * scale
        raise UnsupportedModelError(
            f"{self.model.name} does other things with its input than to look up "
            "embeddings, so that no gradient can be taken there. Choose another model."
        )


def _remembered(cross: Sequence[Sequence[Tensor]]) -> EncoderDecoderCache:
    """A cache that holds keys and values of cross-attention, and nothing else."""
    known = DynamicCache()
    for layer, (keys, values) in enumerate(cross):
        known.update(keys, values, layer)
    return EncoderDecoderCache(DynamicCache(), known)


class Remembered:
    """A function whose graphs are kept, so that every token's gradient is one backward.

    captum asks for one output token at a time; without this, each of its calls would
    run the encoder again at the same points.

    Args:
        function: From `[1, ...]` to `[1, token]`.
        size: Points that are kept, the first ones, since every token asks for all of
            them in the same order; each holds the graph of one forward.
        gradients: Keep what the graphs have given as well, for another method that
            asks for it.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], size: int, gradients: bool = False
    ) -> None:
        self.function, self.size = function, size
        self.kept: dict[str, tuple[Tensor, Tensor]] = {}
        self.given: dict[tuple[str, str], Tensor] | None = {} if gradients else None

    def __call__(self, values: Tensor) -> Tensor:
        """`[row, token]` of `[row, ...]`."""
        if not (torch.is_grad_enabled() and values.requires_grad):
            with torch.no_grad():
                return torch.cat([self.function(row) for row in values.split(1)])
        rows = [_Recall.apply(row, self) for row in values.split(1)]
        return torch.cat(rows)  # type: ignore[arg-type]

    def graph(self, point: Tensor) -> tuple[str, Tensor, Tensor]:
        """The point's name, itself as a leaf, its value with the graph between them."""
        name = content_digest(point)
        if name in self.kept:
            return name, *self.kept[name]
        with torch.enable_grad():
            leaf = point.detach().clone().requires_grad_()
            made = leaf, self.function(leaf)
        if len(self.kept) < self.size:
            self.kept[name] = made
        return name, *made


class _Recall(torch.autograd.Function):
    """A row of a remembered function; backward goes through the graph that is kept."""

    @staticmethod
    def forward(ctx: Any, point: Tensor, owner: Remembered) -> Tensor:
        ctx.graph, ctx.given = owner.graph(point), owner.given
        return ctx.graph[-1].detach().clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        name, leaf, value = ctx.graph
        given = {} if ctx.given is None else ctx.given
        asked = name, content_digest(gradients[0])
        if asked not in given:
            own = torch.autograd.grad(value, leaf, gradients[0], retain_graph=True)
            given[asked] = own[0]
        return given[asked].clone(), None
