"""What a model is given and what it writes: recordings window by window, or texts."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from interp.audio import Sound, Window, read_sound, require_length, windows
from interp.errors import InputError, UnsupportedModelError
from interp.forward import evaluating
from interp.inputs import prepare
from interp.models import Model, quiet
from interp.weights import content_digest

Kind = Literal["speech", "text", "decoder"]

MOST_TOKENS = 128
"""Tokens that are written of an utterance, unless told otherwise."""

LONGEST = 120.0
"""Seconds of a recording that are compared at once: every 30 s of speech take minutes
and hold up to 0.7 GB of saliency, frame by frame and channel by channel."""


class _NothingWrittenError(InputError):
    """No output token has a saliency."""


@dataclass(frozen=True, eq=False)
class Utterance:
    """One window of a recording, or one text, with the tokens that follow from it.

    Attributes:
        name: What it is called in reports.
        kind: Speech to text, text to text, or a decoder alone, whose text is both.
        inputs: What the encoder reads; for a decoder alone nothing.
        ids: `[1, token]`, the decoder's: prompt, output and end.
        scored: Places in `ids` of the tokens whose saliency is taken.
        words: The scored tokens as strings.
        read: The tokens that are read as strings; empty for sound.
        window: The sound.
    """

    name: str
    kind: Kind
    inputs: dict[str, Tensor]
    ids: Tensor
    scored: tuple[int, ...]
    words: tuple[str, ...]
    read: tuple[str, ...] = ()
    window: Window | None = None

    @property
    def content_hash(self) -> str:
        """SHA-256 of what is read, written and scored."""
        digest = hashlib.sha256(repr(self.scored).encode())
        for name, value in sorted({**self.inputs, "ids": self.ids}.items()):
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(content_digest(value).encode())
        return digest.hexdigest()


def kind_of(model: Model) -> Kind:
    """What the model reads and writes.

    Raises:
        UnsupportedModelError: It writes no text.
    """
    module: Any = model.module
    if not model.anatomy.capability("generation").available:
        raise UnsupportedModelError(
            f"Attention is compared with the saliency of output tokens; {model.name} "
            f"writes none ({type(module).__name__}). Choose a model with a "
            "language-model head."
        )
    if not module.config.is_encoder_decoder:
        return "decoder"
    main = module.main_input_name
    return "text" if main == "input_ids" else "speech"


def utterances(
    model: Model,
    given: Any,
    *,
    text: str | Sequence[str] | None = None,
    max_tokens: int = MOST_TOKENS,
    silent: Callable[[str], None] = lambda name: None,
) -> Iterator[Utterance]:
    """The utterances of what a caller gave, each with its output tokens.

    A window of a recording that the model writes nothing for is left out, as long as
    another is there.

    Args:
        model: A model that writes text.
        given: For a model of speech a path, a `Sound`, or several; else a text or
            several. A recording of any length comes in the model's own windows.
        text: What is written, one for each utterance, instead of what the model
            itself would write. A decoder alone writes the text that it is given.
        max_tokens: Output tokens of an utterance at most.
        silent: Told the name of each window that was left out.

    Raises:
        InputError: Nothing was given, it cannot be read, it is a recording of more
            than `LONGEST` seconds, or nothing is written.
        UnsupportedModelError: The model writes no text or reads something else.
    """
    kind = kind_of(model)
    items = [given] if isinstance(given, str | Path | Sound) else list(given or ())
    if not items:
        raise InputError("Nothing was given. Name a recording or a text.")
    texts = [text] if isinstance(text, str) else None if text is None else list(text)
    count, nothing = 0, None
    for number, item in enumerate(items):
        pieces = _heard(model, item) if kind == "speech" else [_read(model, item)]
        for inputs, name, window in pieces:
            if texts is not None and count >= len(texts):
                raise InputError(
                    f"{len(texts)} texts were given as what is written, but there are "
                    "more utterances. Give one for each, or none."
                )
            said = None if texts is None else texts[count]
            name = name or (f"text {number + 1}" if len(items) > 1 else "text")
            try:
                made = _utterance(model, kind, inputs, name, window, said, max_tokens)
            except _NothingWrittenError as error:
                if window is None:
                    raise
                nothing = error
                silent(f"{name} from {window.begin:g} s")
                continue
            yield made
            count += 1
    if nothing is not None and not count:
        raise nothing


def _heard(model: Model, item: Any) -> Iterator[tuple[dict[str, Tensor], str, Window]]:
    if isinstance(item, Sound):
        require_length(item.name, item.seconds, LONGEST)
        sound = item
    else:
        sound = read_sound(item, longest=LONGEST)
    for window in windows(model, sound):
        yield window.inputs, sound.name, window


def _read(model: Model, item: Any) -> tuple[dict[str, Tensor], str, None]:
    if isinstance(item, Path):
        raise InputError(
            f"{model.name} reads text; got the path {item}. Pass the text itself."
        )
    return prepare(model, item).forward, "", None


def _utterance(
    model: Model,
    kind: Kind,
    inputs: Mapping[str, Any],
    name: str,
    window: Window | None,
    text: str | None,
    max_tokens: int,
) -> Utterance:
    if kind == "decoder":
        ids = inputs["input_ids"][:, : max_tokens + 1]
        scored = tuple(range(1, ids.shape[1]))
        read = _strings(model, ids[0].tolist())
        _require_tokens(scored, name)
        return Utterance(name, kind, {}, ids, scored, read[1:], read)
    main = model.module.main_input_name
    own = {main: inputs[main]}
    prompt = _prompt(model, own)
    if text is None:
        written = _written(model, own, len(prompt), max_tokens)
    else:
        written = _tokens(model, text)
    special = _special(model)
    written = [token for token in written if token not in special][:max_tokens]
    scored = tuple(range(len(prompt), len(prompt) + len(written)))
    _require_tokens(scored, name)
    end = _end(model)
    ids = torch.tensor([[*prompt, *written, *end]], device=model.device)
    read = () if kind == "speech" else _strings(model, own[main][0].tolist())
    words = _strings(model, written)
    return Utterance(name, kind, own, ids, scored, words, read, window)


def _require_tokens(scored: tuple[int, ...], name: str) -> None:
    if not scored:
        raise _NothingWrittenError(
            f"No token is written for {name}, so nothing has a saliency. Give speech "
            "that is understood, a longer text, or what is written with text=..."
        )


def _prompt(model: Model, inputs: dict[str, Tensor]) -> list[int]:
    """What stands before the output: for Whisper also language, task, no times."""
    module: Any = model.module
    config = module.generation_config
    start = config.decoder_start_token_id
    start = module.config.decoder_start_token_id if start is None else start
    start = config.bos_token_id if start is None else start
    prompt = [int(start or 0)]
    languages = getattr(config, "lang_to_id", None)
    if languages:
        with torch.no_grad(), evaluating(module):
            found = module.detect_language(inputs[module.main_input_name])
        prompt += [int(found[0]), int(config.task_to_id["transcribe"])]
    silent = getattr(config, "no_timestamps_token_id", None)
    return prompt if silent is None else [*prompt, int(silent)]


def _written(
    model: Model, inputs: dict[str, Tensor], n_prompt: int, max_tokens: int
) -> list[int]:
    """Greedy output, without the prompt where the model leaves it out itself."""
    module: Any = model.module
    languages = getattr(module.generation_config, "lang_to_id", None)
    options: dict[str, Any] = {"task": "transcribe"} if languages else {}
    room = (model.max_tokens or max_tokens + n_prompt) - n_prompt
    with torch.no_grad(), evaluating(module), quiet():
        ids = module.generate(
            **inputs,
            max_new_tokens=min(max_tokens, room),
            do_sample=False,
            num_beams=1,
            **options,
        )
    return ids[0].tolist()


def _tokens(model: Model, text: str) -> list[int]:
    if model.tokenizer is None:
        raise InputError(
            f"A text to be written needs a tokenizer; {model.name} came without one. "
            "Pass tokenizer=... to interp.load."
        )
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def _special(model: Model) -> set[int]:
    config: Any = model.module.generation_config
    ends = config.eos_token_id
    known = [*ends] if isinstance(ends, list) else [ends]
    known += [config.pad_token_id, config.bos_token_id, config.decoder_start_token_id]
    known += list(getattr(model.tokenizer, "all_special_ids", ()))
    known += list((getattr(config, "lang_to_id", None) or {}).values())
    known += [getattr(config, "no_timestamps_token_id", None)]
    return {int(token) for token in known if token is not None}


def _end(model: Model) -> list[int]:
    end: Any = model.module.generation_config.eos_token_id
    end = end[0] if isinstance(end, list) else end
    return [] if end is None else [int(end)]


def _strings(model: Model, ids: Sequence[int]) -> tuple[str, ...]:
    if model.tokenizer is None:
        return tuple(f"#{token}" for token in ids)
    words = model.tokenizer.batch_decode([[token] for token in ids])
    return tuple(word.encode("utf-8", "replace").decode("utf-8") for word in words)
