"""LoHa, LoKr and whole differences as the two factors of a LoRA, exactly: up @ down is their change of the weight.

Formulas: LyCORIS (arXiv 2309.14859), of which the names are.
"""

from collections.abc import Mapping

import torch

Tensors = Mapping[str, torch.Tensor]

PARTS = (
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    "diff",
)


def factors(parts: Tensors) -> tuple[torch.Tensor, torch.Tensor, int] | None:
    """``down`` [r, in, ...], ``up`` [out, r] and the rank that alpha is divided by, 0 where alpha has no part in it.

    None where a part that the others need is missing.

    Raises:
        RuntimeError, IndexError: shapes that do not multiply.
    """
    values = {name: value.float() for name, value in parts.items()}
    if "diff" in values:
        alone = len(values) == 1 and values["diff"].ndim > 1  # a norm's has one axis
        return (*_whole(values["diff"]), 0) if alone else None
    if any(name.startswith("hada") for name in values):
        return _hadamard(values)
    return _kronecker(values)


def _whole(change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A change [out, in, ...] as factors, one of which is the identity."""
    return change, torch.eye(len(change))


def _hadamard(parts: Tensors) -> tuple[torch.Tensor, torch.Tensor, int] | None:
    """(w1_a @ w1_b) * (w2_a @ w2_b): of rank r^2, whose factors are the products of all pairs of columns and rows."""
    if set(parts) not in ({*_HADAMARD}, {*_HADAMARD, "hada_t1", "hada_t2"}):
        return None
    a1, b1, a2, b2 = (parts[name] for name in _HADAMARD)
    if "hada_t1" in parts:
        change = _tucker(parts["hada_t1"], a1, b1) * _tucker(parts["hada_t2"], a2, b2)
        return (*_whole(change), len(b1))
    up = torch.einsum("oi, oj -> oij", a1, a2).flatten(1)
    down = torch.einsum("in, jn -> ijn", b1.flatten(1), b2.flatten(1)).flatten(0, 1)
    return down.view(-1, *b1.shape[1:]), up, len(b1)


_HADAMARD = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


def _kronecker(parts: Tensors) -> tuple[torch.Tensor, torch.Tensor, int] | None:
    """The Kronecker product of w1 and w2, each whole or a product of two factors, w2 for convolutions of three.

    Where w2 is a b, its factors are w1 x a and I x b, of rank r times w1's inputs, if that is less than the outputs.
    """
    rest, rank = dict(parts), 0
    sides, pair = [], None
    for name in ("lokr_w1", "lokr_w2"):
        whole, a, b = rest.pop(name, None), rest.pop(f"{name}_a", None), rest.pop(f"{name}_b", None)
        core = rest.pop("lokr_t2", None) if name == "lokr_w2" else None
        if (whole is None) != (a is not None and b is not None) or (core is not None and whole is not None):
            return None
        if whole is None and a is not None and b is not None:
            rank = len(b)
            pair = (a, b) if name == "lokr_w2" and core is None else None
            whole = (a @ b.flatten(1)).reshape(-1, *b.shape[1:]) if core is None else _tucker(core, a, b)
        sides.append(whole)
    if rest or any(side is None for side in sides):
        return None
    first, second = (side for side in sides if side is not None)
    if pair is not None and first.shape[1] * rank < len(first) * len(second):
        a, b = pair
        down = torch.kron(torch.eye(first.shape[1]), b.flatten(1).contiguous())
        return down.view(len(down), -1, *b.shape[2:]), torch.kron(first.contiguous(), a.contiguous()), rank
    first = first.reshape(*first.shape, *[1] * (second.ndim - first.ndim))
    return (*_whole(torch.kron(first.contiguous(), second.contiguous())), rank)


def _tucker(core: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``core`` [r, r, ...] with ``a`` [r, out] and ``b`` [r, in]: [out, in, ...]."""
    return torch.einsum("ij..., io, jn -> on...", core, a, b)
