"""Arguments of updates: tensors in tuples, named tuples and dicts, with None where a tensor is missing."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch as th

TENSOR = "tensor"


def flatten(tree: Any) -> tuple[list[th.Tensor], Any]:
    """
    :return: the tensors in order, and a hashable description of the rest
    """
    leaves: list[th.Tensor] = []
    return leaves, _describe(tree, leaves)


def unflatten(leaves: Sequence[th.Tensor], description: Any) -> Any:
    """The tree that :func:`flatten` took apart, with these tensors."""
    return _rebuild(iter(leaves), description)


def _describe(tree: Any, leaves: list[th.Tensor]) -> Any:
    if isinstance(tree, th.Tensor):
        leaves.append(tree)
        return TENSOR
    if isinstance(tree, tuple):
        return type(tree), tuple([_describe(value, leaves) for value in tree])
    if isinstance(tree, dict):
        return dict, tuple([(key, _describe(value, leaves)) for key, value in tree.items()])
    if tree is None:
        return None
    raise TypeError(f"Updates take tensors, None, tuples and dicts of them, not {type(tree).__name__}.")


def _rebuild(leaves: Iterator[th.Tensor], description: Any) -> Any:
    if description is TENSOR:
        return next(leaves)
    if description is None:
        return None
    kind, parts = description
    if kind is dict:
        return {key: _rebuild(leaves, part) for key, part in parts}
    values = [_rebuild(leaves, part) for part in parts]
    return tuple(values) if kind is tuple else kind(*values)
