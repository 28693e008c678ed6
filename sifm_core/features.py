"""Features of a network's inner layers by module path, without running what lies behind the last of them."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from .errors import LayerError


class _Complete(BaseException):
    """Every path has fired: leaves the forward pass. Only :func:`capture` raises and catches it."""


def resolve(net: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """The module paths of ``net`` that match glob patterns, in the network's own order, each once.

    A wildcard stays within one part of the path: "up_blocks.0.resnets.*" does not reach into the resnets. What follows
    a colon, the stream that is wanted, stays: "blocks.*:text" gives "blocks.0:text", ... Raises LayerError for a
    pattern that matches nothing, with near names, and when there is no pattern at all.
    """
    if not patterns:
        raise LayerError("expected at least one layer, got none: name a preset or module paths such as 'mid_block'")
    known = {name: k for k, (name, _) in enumerate(net.named_modules()) if name}
    found: dict[str, tuple[int, str]] = {}
    for pattern in patterns:
        path, colon, stream = pattern.partition(":")
        matches = [name for name in known if _matches(name, path)]
        if not matches:
            raise LayerError(f"no layer of {type(net).__name__} matches {pattern!r}: {_near(path, list(known))}")
        found |= {name + colon + stream: (known[name], stream) for name in matches}
    return tuple(sorted(found, key=found.__getitem__))


def capture(
    net: nn.Module,
    paths: Sequence[str],
    run: Callable[[], Any],
    hidden: Callable[..., Any] = lambda module, output: output,
) -> dict[str, Tensor]:
    """Call ``run``, which runs ``net``, and return the hidden state that each path put out, in the order of ``paths``.

    The forward pass ends as soon as every path has fired, whatever their order; a path that fires again keeps its first
    output. The hooks are gone when this returns or raises, so a backward pass that recomputes checkpoints meets none.
    ``hidden`` says what of a module's output is wanted (:meth:`Editor.hidden`: the picture's), of which the first
    tensor counts; it is told the stream where a path names one after a colon.
    Raises LayerError for a path that is not in the network, never ran, or put out no tensor.
    """
    if not paths:
        raise LayerError("expected at least one layer, got none")
    modules = {path: _module(net, path.partition(":")[0]) for path in paths}
    features: dict[str, Tensor] = {}

    def keep(path: str, module: nn.Module, args: Any, output: Any) -> None:
        stream = path.partition(":")[2]
        feature = first_tensor(hidden(module, output, stream) if stream else hidden(module, output))
        if feature is None:
            raise LayerError(f"{path} put out no tensor: choose another layer")
        features.setdefault(path, feature)
        if len(features) == len(modules):
            raise _Complete

    hooks = []
    try:
        for path, module in modules.items():
            hooks.append(module.register_forward_hook(partial(keep, path)))
        run()
    except _Complete:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    missing = [path for path in paths if path not in features]
    if missing:
        raise LayerError(f"{', '.join(missing)} never ran in {type(net).__name__}: choose layers of its forward pass")
    return {path: features[path] for path in paths}


def _module(net: nn.Module, path: str) -> nn.Module:
    try:
        return net.get_submodule(path)
    except AttributeError:
        known = [name for name, _ in net.named_modules()]
        raise LayerError(f"{type(net).__name__} has no layer {path!r}: {_near(path, known)}") from None


def first_tensor(output: Any) -> Tensor | None:
    """The first tensor that a module put out, alone, in a tuple or as an output's `sample`; None for none."""
    if isinstance(output, tuple | list):
        output = next((part for part in output if isinstance(part, Tensor)), None)
    output = getattr(output, "sample", output)
    return output if isinstance(output, Tensor) else None


def _matches(name: str, pattern: str) -> bool:
    parts, globs = name.split("."), pattern.split(".")
    return len(parts) == len(globs) and all(map(fnmatch.fnmatchcase, parts, globs))


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return (
        f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(k for k in known if k and '.' not in k)}"
    )
