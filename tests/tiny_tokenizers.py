"""Tokenizers trained here, whose tokens do not end where words do."""

from functools import cache
from types import SimpleNamespace
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from interp.tasks.reading import shipped


@cache
def merging_tokenizer(opens: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE that also merges across spaces: `d the`, `. The` are tokens.

    Any text can be encoded, and decoding gives it back.

    Args:
        opens: Puts `<s>` in front of every text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(shipped().split("\n"), trainer)
    if opens:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


@cache
def dummy_space_tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer that begins every text with a space, as SentencePiece does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False)
    tokenizer.train_from_iterator(shipped().split("\n"), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def reader(tokenizer: Any, max_tokens: int | None = 4096) -> Any:
    """What a task needs of a model: all but the model."""
    anatomy = SimpleNamespace(
        model_type="toy",
        vocab_size=len(tokenizer) if tokenizer is not None else 64,
        max_positions=max_tokens,
    )
    return SimpleNamespace(
        name="toy", tokenizer=tokenizer, max_tokens=max_tokens, anatomy=anatomy
    )
