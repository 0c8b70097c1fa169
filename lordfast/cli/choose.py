"""Commands that come in kinds: the kind's name is the first word."""

from __future__ import annotations

from collections.abc import Mapping


def choose(
    command: str, kinds: Mapping[str, str], needs: str, args: list[str], more: str = ""
) -> tuple[str, list[str]] | None:
    """The kind that `args` begin with, and the other words; None for ``--help``, which prints the list of kinds.

    Args:
        kinds: name -> what it does, in one line.
        needs: the flags that every kind needs, for the usage line.
        more: a last line.

    Raises:
        ValueError: there is no name, or none that is known.
    """
    if not args or args[0].startswith("-"):
        width = max(map(len, kinds))
        rows = "\n".join(f"  {name:<{width}}  {text}" for name, text in kinds.items())
        print(
            f"usage: lordfast {command} NAME {needs} [options]\n\nnames:\n{rows}\n\n"
            f"lordfast {command} NAME --help lists the options."
        )
        if more:
            print(more)
        if args and args[0] in ("-h", "--help"):
            return None
        raise ValueError(f"{command}: expected a name ({', '.join(kinds)}) first")
    if args[0] not in kinds:
        raise ValueError(f"{command}: expected one of {', '.join(kinds)}, got {args[0]!r}")
    return args[0], args[1:]
