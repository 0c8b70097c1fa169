"""Which backend runs an operation: forced by argument, context or environment, else the best measured that takes it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from .backends import Backend, load_backends
from .backends._base import first_tensor
from .choice import Row, case_of, device_key, nearest_row

ENV_VARIABLE = "LORDFAST_BACKEND"
BACKENDS: dict[str, Backend] = load_backends()

_log = logging.getLogger("lordfast.ops")
_said: set[tuple[str, str, str]] = set()
# A plain global and not a ContextVar or a thread-local: torch.compile guards on globals (it can't trace the first and
# silently bakes in the second), and autograd runs CUDA backwards in threads of its own.
_forced: str = ""


def available_backends() -> dict[str, str]:
    """The backends, the most wanted first: name -> `"ok"`, or the reason why it can't be used here."""
    return {name: backend.missing() or "ok" for name, backend in BACKENDS.items()}


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Force one backend for the operations called inside, and for their backward passes; None lifts an outer force.

    Holds for the whole process (all threads) while the context is open. A call's own `backend=` argument wins over
    it, and it wins over the environment variable `LORDFAST_BACKEND`. An operation that the forced backend can't run
    raises `ValueError` instead of falling back.

    Raises:
        ValueError: `name` is no backend's name.
    """
    global _forced
    check_backend_name("name", name)
    before, _forced = _forced, name or ""
    try:
        yield
    finally:
        _forced = before


def check_backend_name(argument: str, name: str | None) -> None:
    """Raise a ValueError that names `argument` unless `name` is None or a backend's name."""
    if name is not None and name not in BACKENDS:
        raise ValueError(f"{argument} is {name!r}; expected None or one of {', '.join(map(repr, BACKENDS))}")


def forced_backend(backend: str | None) -> str:
    """The backend that the argument or else the context forces, "" where neither does."""
    if backend is None:
        return _forced
    check_backend_name("backend", backend)
    return backend


def run(op: str, backend: str, *args: Any) -> Any:
    """Run `op` on the backend forced by `backend`, else by the environment, else on the best that takes the case."""
    if backend:
        return _run_forced(op, backend, f"backend={backend!r}", args)
    backend = os.environ.get(ENV_VARIABLE, "")
    if backend:
        check_backend_name(f"the environment variable {ENV_VARIABLE}", backend)
        return _run_forced(op, backend, f"{ENV_VARIABLE}={backend}", args)
    refused: list[tuple[str, str]] = []
    for candidate in candidates(op, args):
        why = why_not(candidate, op, args)
        if why is None:
            for name, reason in refused:
                _say_once(op, name, reason, candidate.name)
            return candidate.kernels[op].run(*args)
        refused.append((candidate.name, why))
    raise ValueError(f"no backend can run {op}: " + "; ".join(f"{name}: {why}" for name, why in refused))


def candidates(op: str, args: tuple[Any, ...]) -> tuple[Backend, ...]:
    """The backends that are tried for these arguments, in order: the fastest measured first, then by priority."""
    device = first_tensor(args).device
    return _ordered(op, device.type, nearest_row(device_key(device), case_of(op, args)))


@cache
def _ordered(op: str, device: str, row: Row | None) -> tuple[Backend, ...]:
    tiers = () if row is None else row.tiers
    able = [b for b in BACKENDS.values() if op in b.kernels and (b.devices is None or device in b.devices)]
    tier = {name: i for i, names in enumerate(tiers) for name in names}
    # A stable sort: within a tier the priorities' order stays, and what was not measured comes behind what was.
    return tuple(sorted(able, key=lambda b: tier.get(b.name, len(tiers))))


def why_not(backend: Backend, op: str, args: tuple[Any, ...]) -> str | None:
    """Why a backend can't run `op` on these arguments, None if it can."""
    why = backend.missing()
    if why is not None:
        return why
    kernel = backend.kernels.get(op)
    return f"it has no kernel for {op}" if kernel is None else kernel.refuses(*args)


def _run_forced(op: str, name: str, how: str, args: tuple[Any, ...]) -> Any:
    backend = BACKENDS[name]
    why = why_not(backend, op, args)
    if why is not None:
        raise ValueError(f"{how} was forced but can't run {op} here: {why}; expected a backend that takes this case")
    return backend.kernels[op].run(*args)


def _say_once(op: str, name: str, why: str, instead: str) -> None:
    if (op, name, why) not in _said:
        _said.add((op, name, why))
        _log.info("%s: backend %s can't run this (%s); using %s", op, name, why, instead)
