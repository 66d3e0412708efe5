"""Which modules attend, recognized by what their class's code calls."""

import ast
import inspect
import re
import textwrap
from functools import cache
from typing import Any

from torch import nn

# Classes that take a softmax, but over parts of a row, or weigh values by einsum.
_OTHERWISE = re.compile(
    "BigBirdBlock|Longformer|LEDEncoder|LSH|Local|Mra|Nystrom|ProbSparse|ProphetNet"
    "|XLNet|Yoso"
)


def calls_interface(kind: type[nn.Module]) -> bool:
    """Whether modules of a class ask transformers for their attention function."""
    return call_keywords(kind) is not None


@cache
def attends_by_hand(kind: type[nn.Module]) -> bool:
    """Whether a class takes the softmax over whole rows of scores by itself."""
    if "Attention" not in kind.__name__ or _OTHERWISE.search(kind.__name__):
        return False
    source = "".join(
        inspect.getsource(each)
        for each in kind.__mro__
        if each.__module__.startswith(kind.__module__)
    )
    return bool(re.search(r"[sS]oftmax\(|scaled_dot_product_attention\(", source))


@cache
def call_keywords(kind: type[nn.Module]) -> dict[str, ast.expr] | None:
    """Keywords of a class's call of the attention interface, or None without one."""
    try:
        source = textwrap.dedent(inspect.getsource(kind.forward))
    except (OSError, TypeError):
        return None
    if "ALL_ATTENTION_FUNCTIONS" not in source:
        return None
    keywords: dict[str, ast.expr] = {}
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(ast.Name("attention_interface"), _, passed):
                keywords |= {each.arg: each.value for each in passed if each.arg}
    return keywords


def value_of(node: ast.expr, part: nn.Module) -> Any:
    """What an expression over `self` holds; None where it names a local variable."""
    match node:
        case ast.Constant(value):
            return value
        case ast.Name("self"):
            return part
        case ast.Attribute(holder, name):
            return getattr(value_of(holder, part), name, None)
        case ast.IfExp(condition, chosen, otherwise):
            return value_of(chosen if value_of(condition, part) else otherwise, part)
        case ast.Call(ast.Name("getattr"), [holder, ast.Constant(str(name)), *_]):
            return getattr(value_of(holder, part), name, None)
    return None
