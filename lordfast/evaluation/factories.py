"""``package.module:factory`` on the command line: the way by which people bring networks of their own."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def call_factory(spec: str, argument: str, expected: str) -> Any:
    """What the factory that `spec` names gives when it is called without arguments, also from the current folder.

    Raises:
        ValueError: it can't be imported or fails; the message names `argument` and what was `expected`.
    """
    module_name, _, attribute = spec.partition(":")
    try:
        with _current_folder_importable():
            return getattr(importlib.import_module(module_name), attribute)()
    # The code is the user's own: whatever it raises, they must learn that it came out of their module.
    except Exception as error:
        raise ValueError(
            f"{argument}: {spec!r} failed with {type(error).__name__}: {error}; expected {expected}"
        ) from error


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    # An installed command's sys.path lacks the folder that the person stands in, where their module usually is.
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
