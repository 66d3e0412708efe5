"""From texts, token ids or ready model inputs to what a forward takes, with labels."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.capture import TokenEdges
from interp.errors import InputError
from interp.kernels.definitions import Edges
from interp.models import Model


@dataclass(frozen=True)
class Side:
    """The tokens of one stack: decoder or encoder.

    Attributes:
        ids: `[sample, token]` as the model gets them, or None (audio, images).
        real: `[sample, token]`, True for real tokens; None when all are.
        text: The real tokens of each sample as strings; empty without ids.
    """

    ids: Tensor | None
    real: Tensor | None
    text: tuple[tuple[str, ...], ...]

    @property
    def spans(self) -> list[slice] | None:
        """Real tokens of each sample; None when they are all real."""
        if self.real is None:
            return None
        found = [row.nonzero().flatten() for row in self.real.cpu()]
        return [slice(int(at[0]), int(at[-1]) + 1) for at in found]


@dataclass(frozen=True)
class Inputs:
    """What a forward takes, and what its tokens are called.

    Attributes:
        forward: Keyword arguments of the model.
        is_batch: Whether results carry a `sample` axis.
        decoder: Tokens of the stack whose sites are `self` and `cross`.
        encoder: Tokens of the stack whose site is `encoder`.
    """

    forward: dict[str, Any]
    is_batch: bool
    decoder: Side
    encoder: Side

    @property
    def n_samples(self) -> int:
        """Number of texts."""
        return next(v.shape[0] for v in self.forward.values() if hasattr(v, "shape"))

    def sides(self, site: str) -> tuple[Side, Side]:
        """The query's and the key's side at a site."""
        return {
            "self": (self.decoder, self.decoder),
            "cross": (self.decoder, self.encoder),
            "encoder": (self.encoder, self.encoder),
        }[site]

    @property
    def content_hash(self) -> str:
        """SHA-256 over every tensor that the model is given."""
        digest = hashlib.sha256()
        for name, value in sorted(self.forward.items()):
            if isinstance(value, Tensor):
                digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def prepare(model: Model, inputs: Any, max_tokens: int | None = None) -> Inputs:
    """Reads what the caller gave.

    Args:
        model: The model and its tokenizer.
        inputs: A text, several texts, token ids (one list or several, or a tensor), or
            a mapping of ready model inputs.
        max_tokens: Keep at most this many tokens of each text.

    Raises:
        InputError: The text is empty, too long, or of a kind that cannot be read.
    """
    if isinstance(inputs, Mapping):
        if max_tokens is not None:
            raise InputError(
                f"max_tokens={max_tokens} cuts texts and token ids; got ready model "
                "inputs. Cut those before they are passed."
            )
        return _ready(model, dict(inputs))
    main = getattr(model.module, "main_input_name", "input_ids")
    if main != "input_ids":
        raise InputError(
            f"{model.name} reads {main}, not text; got {_described(inputs)}. Pass a "
            f"mapping of what its processor makes: {{'{main}': ...}}."
        )
    if isinstance(inputs, str):
        return _ids(model, [_tokenize(model, inputs)], max_tokens, is_batch=False)
    if isinstance(inputs, Tensor):
        inputs = inputs[None] if inputs.dim() == 1 else inputs
        _check_shape("A tensor of token ids", inputs)
        rows = inputs.tolist()
        return _ids(model, rows, max_tokens, is_batch=len(rows) > 1)
    if isinstance(inputs, Sequence) and len(inputs) > 0:
        if isinstance(inputs[0], int):
            return _ids(model, [list(inputs)], max_tokens, is_batch=False)
        if isinstance(inputs[0], str):
            rows = [_tokenize(model, text) for text in inputs]
            return _ids(model, rows, max_tokens, is_batch=True)
        if isinstance(inputs[0], Sequence):
            return _ids(model, [list(row) for row in inputs], max_tokens, is_batch=True)
    raise InputError(
        "A trace needs a text, several texts, token ids or a mapping of model inputs; "
        f"got {_described(inputs)}. Pass a string to begin with."
    )


def token_edges(edges: TokenEdges, side: Side) -> Edges | None:
    """Target keys that follow from the token ids; None where there are no ids.

    The targets are key indices in the frame of the padded batch.
    """
    if side.ids is None:
        return None
    n_samples, n_tokens = side.ids.shape
    spans = side.spans or [slice(0, n_tokens)] * n_samples
    targets = {}
    for kind in edges.kinds:
        n_targets = 1 if kind == "previous" else edges.copies
        rows = torch.full((n_samples, n_tokens, n_targets), -1)
        for sample, span in enumerate(spans):
            ids = side.ids[sample, span].tolist()
            own = torch.tensor(_targets(kind, ids, n_targets))
            rows[sample, span] = torch.where(own >= 0, own + span.start, own)
        targets[kind] = rows
    return Edges(tuple(targets.items()))


def _targets(kind: str, ids: list[int], n_targets: int) -> list[list[int]]:
    """For each token the keys of one kind of edge, latest first, -1 for none."""
    if kind == "previous":
        return [[query - 1] for query in range(len(ids))]
    step = {"duplicate": 0, "induction": 1}.get(kind)
    if step is None:
        raise InputError(
            f"Edges are previous, duplicate or induction; got {kind!r}. Choose of them."
        )
    seen: dict[int, list[int]] = {}
    rows = []
    for query, token in enumerate(ids):
        earlier = seen.setdefault(token, [])
        row = [key + step for key in reversed(earlier[-n_targets:])]
        rows.append(row + [-1] * (n_targets - len(row)))
        earlier.append(query)
    return rows


def _tokenize(model: Model, text: str) -> list[int]:
    if model.tokenizer is None:
        raise InputError(
            f"A text needs a tokenizer; {model.name} came without one. Pass "
            "tokenizer=..., or token ids instead of a text."
        )
    if not text.strip():
        raise InputError("The text is empty. Give at least one word.")
    return model.tokenizer(text, verbose=False)["input_ids"]


def _ids(
    model: Model, rows: list[list[int]], max_tokens: int | None, is_batch: bool
) -> Inputs:
    rows = [row[:max_tokens] for row in rows]
    if not all(rows):
        raise InputError("The text has no tokens. Give at least one word.")
    n_tokens = max(map(len, rows))
    tokenizer = model.tokenizer
    pad = getattr(tokenizer, "pad_token_id", None) or 0
    ids = torch.tensor([row + [pad] * (n_tokens - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(n_tokens) < lengths[:, None]
    forward: dict[str, Any] = {"input_ids": ids}
    if not mask.all():
        forward["attention_mask"] = mask.long()
    return _ready(model, forward, is_batch)


def _check_shape(name: str, ids: Tensor) -> None:
    if ids.dim() != 2 or ids.numel() == 0 or ids.is_floating_point():
        raise InputError(
            f"{name} holds whole numbers [sample, token]; got {ids.dtype} of shape "
            f"{tuple(ids.shape)}. Pass at least one token of one text."
        )


def _check_ids(model: Model, name: str, ids: Tensor) -> None:
    _check_shape(name, ids)
    limit, n_tokens = model.max_tokens, ids.shape[1]
    if limit is not None and n_tokens > limit:
        raise InputError(
            f"The text has {n_tokens:,} tokens; {model.name} was made for {limit:,}. "
            f"Cut it with --max-tokens {limit} (max_tokens={limit} in Python)."
        )
    size = model.anatomy.vocab_size
    size = int(ids.max()) + 1 if size is None else size
    wrong = ids[(ids < 0) | (ids >= size)]
    if len(wrong):
        raise InputError(
            f"Token id {int(wrong[0])} is outside the vocabulary of {size:,} tokens. "
            f"Use the tokenizer that belongs to {model.name}."
        )


def _ready(
    model: Model, forward: dict[str, Any], is_batch: bool | None = None
) -> Inputs:
    device = model.device
    forward = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in forward.items()
    }
    main = next((v for v in forward.values() if isinstance(v, Tensor)), None)
    if main is None:
        raise InputError(
            f"Model inputs are tensors by name; got {', '.join(forward) or 'none'}. "
            "Pass what the model's forward takes, such as input_ids."
        )
    ids = forward.get("input_ids")
    mask = forward.get("attention_mask")
    real = mask.bool() if mask is not None and mask.dim() == 2 else None
    if real is not None and not real.any(-1).all():
        raise InputError("A sample has no real token: its attention_mask is all 0.")
    if real is not None and real.all():
        real = None
    for name in ("input_ids", "decoder_input_ids"):
        if isinstance(forward.get(name), Tensor):
            _check_ids(model, name, forward[name])
    first = _side(model, ids, real)
    empty = Side(None, None, ())
    if getattr(model.module.config, "is_encoder_decoder", False):
        forward, own = _with_decoder(model, forward, main.shape[0])
        sides = {"decoder": own, "encoder": first}
    elif "self" in model.anatomy.site_names:
        sides = {"decoder": first, "encoder": empty}
    else:
        sides = {"decoder": empty, "encoder": first}
    batch = main.shape[0] > 1 if is_batch is None else is_batch
    return Inputs(forward, batch, **sides)


def _with_decoder(
    model: Model, forward: dict[str, Any], n_samples: int
) -> tuple[dict[str, Any], Side]:
    """Decoder inputs: those given, or the one token that every decoding starts with."""
    ids = forward.get("decoder_input_ids")
    if ids is None and "decoder_inputs_embeds" not in forward:
        config = model.module.config
        start = getattr(config, "decoder_start_token_id", None)
        start = start if start is not None else config.bos_token_id
        ids = torch.full((n_samples, 1), start or 0, device=model.device)
        forward = forward | {"decoder_input_ids": ids}
    mask = forward.get("decoder_attention_mask")
    real = None if mask is None or bool(mask.all()) else mask.bool()
    return forward, _side(model, ids, real)


def _side(model: Model, ids: Tensor | None, real: Tensor | None) -> Side:
    if ids is None:
        return Side(None, real, ())
    text = []
    for sample, row in enumerate(ids.tolist()):
        span = Side(ids, real, ()).spans
        row = row[span[sample]] if span else row
        if model.tokenizer is None:
            text.append(tuple(f"#{token}" for token in row))
        else:
            words = model.tokenizer.batch_decode([[token] for token in row])
            text.append(tuple(map(_writable, words)))
    return Side(ids, real, tuple(text))


def _writable(word: str) -> str:
    """The word as any file can hold it: half of a surrogate pair becomes a mark."""
    return word.encode("utf-8", "replace").decode("utf-8")


def _described(value: Any) -> str:
    if isinstance(value, Sequence) and not value:
        return "nothing"
    return f"a {type(value).__name__}"
