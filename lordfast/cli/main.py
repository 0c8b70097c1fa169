"""Entry point of the ``lordfast`` command."""

from __future__ import annotations

import io
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "demo": "the whole story on the embedded model: attack, defend, train, generate; offline, on a CPU",
    "attack": "perturb a folder of images so that fine-tuning on them fails",
    "purify": "transform a folder of images to wash an attack out: JPEG, blur, DiffPure and others",
    "stage1": "train a LoRD on clean and perturbed images",
    "stage2": "train a DreamBooth LoRA, on top of a frozen LoRD or without one",
    "generate": "draw images with a model, a LoRD and a LoRA",
    "evaluate": "measure generated images, attacked images, or how well lambda detects an attack",
    "experiment": "the paper's table and figure, or a study of your own: attacks and defenses, with intervals",
    "transfer": "measure how attacked images disturb image variation in other models and under other prompts",
    "report": "report.html of any run or experiment, finished or not: pictures, curves, tables, settings",
    "pairs": "make image pairs for inpainting or super-resolution out of a folder of images",
    "dataset": "bring images of a Hugging Face dataset into a folder with captions",
    "profile": "where the time of a command goes: phases, layers, launches, waits; a trace and a page",
    "bench": "how fast LoRD's layers are here, against the bare ones, eager PyTorch and a LoRA",
    "info": "versions, devices, backends and why one is missing",
}


_WIDTHS = (40, 1000)
"""Columns of a terminal: in fewer, the parser never finds a layout; more is a mistake."""


def usage() -> str:
    """The text of ``lordfast --help``."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: lordfast COMMAND [options]\n\n"
        "Fine-tune diffusion models on images you can't trust.\n\n"
        f"commands:\n{rows}\n\n"
        "lordfast COMMAND --help explains a command; lordfast --version prints the version.\n"
        "A first look: lordfast demo --quick"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for bad input, 130 when interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    _settle_terminal()
    # Several libraries take an empty one for the working folder.
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "TORCH_HOME", "TRITON_CACHE_DIR"):
        if os.environ.get(name) == "":
            del os.environ[name]
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        from lordfast import __version__

        print(f"lordfast {__version__}")
        return 0
    if args[0] not in COMMANDS:
        print(f"error: no command {args[0]!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return _run(args[0], args[1:])


def _settle_terminal() -> None:
    """Have what is printed arrive: in any encoding, and in a width in which help can be set."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    width = shutil.get_terminal_size().columns
    if not _WIDTHS[0] <= width <= _WIDTHS[1]:
        os.environ["COLUMNS"] = str(min(max(width, _WIDTHS[0]), _WIDTHS[1]))


def _run(command: str, args: list[str]) -> int:
    # Read when these libraries are imported; what matters of theirs arrives as an exception.
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    # PEFT imports it where it is installed, and it warns of kernels that it would rather have.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from lordfast.cli.parse import Stopped
    from lordfast.data.notices import notice

    # What was said of the last command's images in this process is said of this one's too.
    notice.cache_clear()
    try:
        import_module(f"lordfast.cli.{command}").run(args)
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(f"\nStopped {stopped.done}. Go on with:\n  {stopped.resume}", file=sys.stderr)
        return 130
    except SystemExit as stop:
        # The parser's, for --help and for flags it does not understand.
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    # OSError covers missing folders, full disks and denied access; anything else is a bug and keeps its traceback.
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
