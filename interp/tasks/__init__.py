"""Things a model is asked to do: items with an answer, every span known exactly."""

from interp.tasks.chains import Chains
from interp.tasks.choices import Choices
from interp.tasks.haystack import Hidden
from interp.tasks.items import Item, Task
from interp.tasks.key_value import KeyValue
from interp.tasks.needle import Needle
from interp.tasks.passkey import Passkey
from interp.tasks.problems import Problems
from interp.tasks.registry import TASKS, named
from interp.tasks.repeated import (
    BLOCK,
    COPIES,
    RepeatedRandom,
    RepeatedTokens,
    repeated_random,
    repeated_random_for,
)
from interp.tasks.texts import Texts

__all__ = [
    "BLOCK",
    "COPIES",
    "TASKS",
    "Chains",
    "Choices",
    "Hidden",
    "Item",
    "KeyValue",
    "Needle",
    "Passkey",
    "Problems",
    "RepeatedRandom",
    "RepeatedTokens",
    "Task",
    "Texts",
    "named",
    "repeated_random",
    "repeated_random_for",
]
