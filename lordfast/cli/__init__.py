"""The ``lordfast`` command: one thin file per sub-command.

Parses flags into the dataclass configs of the packages below and calls them; nothing imports this package.
"""
