"""The compiled extension, or the reason why there is none.

``C`` is the module ``lordfast._C`` or None, ``available`` says which, ``reason`` why it is None ("" where it is not).
An extension that does not load costs speed, never function: one RuntimeWarning names the file and the cause, and the
reference backend does everything. ``LORDFAST_DISABLE_NATIVE=1`` leaves it out without a warning.
"""

import importlib
import importlib.util
import os
import warnings
from typing import Any

# First: torch brings its own OpenMP runtime, and _C finds that one by name if it is there already. Loaded in the other
# order there can be two, whose thread pools then slow each other down a hundredfold.
import torch  # noqa: F401

_NAME = "lordfast._C"
_DISABLE = "LORDFAST_DISABLE_NATIVE"


def _where() -> str:
    """The file that the extension would be loaded from, or the folders where there is none."""
    spec = importlib.util.find_spec(_NAME)
    if spec is not None and spec.origin:
        return spec.origin
    folders = importlib.import_module("lordfast").__path__
    return f"no _C*.so in {', '.join(folders)}"


def _load() -> tuple[Any, str]:
    if os.environ.get(_DISABLE, "").strip().lower() not in {"", "0", "false"}:
        return None, f"switched off by {_DISABLE}={os.environ[_DISABLE]}"
    try:
        return importlib.import_module(_NAME), ""
    except ImportError as error:
        return None, f"{_where()}: {error}"


C, reason = _load()
available: bool = C is not None

if C is None and not reason.startswith("switched off"):
    warnings.warn(
        f"the native extension lordfast._C could not be loaded ({reason}); "
        "everything runs on the reference backend, more slowly",
        RuntimeWarning,
        stacklevel=2,
    )
