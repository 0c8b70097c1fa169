"""Which backends an operation went to: the dispatcher chooses by case, and a result should say what it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lordfast.ops.dispatch import BACKENDS


@contextmanager
def watch_backends() -> Iterator[list[str]]:
    """Yields a list that receives the name of each backend whose kernel runs inside, in order, each name once."""
    seen: list[str] = []
    kernels = [(b.name, kernel) for b in BACKENDS.values() for kernel in b.kernels.values()]
    before = [kernel.run for _, kernel in kernels]

    def watched(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if name not in seen:
                seen.append(name)
            return run(*args)

        return call

    try:
        for (name, kernel), run in zip(kernels, before, strict=True):
            # Kernels are frozen, and known to the dispatcher by identity: this one attribute is lent and given back.
            object.__setattr__(kernel, "run", watched(name, run))
        yield seen
    finally:
        for (_, kernel), run in zip(kernels, before, strict=True):
            object.__setattr__(kernel, "run", run)
