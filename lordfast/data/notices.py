"""What a reader of images has to say that is no error: each text once, though an image is read several times."""

from __future__ import annotations

import functools
import logging
import os

logger = logging.getLogger(__name__)


@functools.cache
def notice(text: str) -> None:
    """Log a warning, by whichever process reads the image; what is not UTF-8 in a file's name is escaped."""
    logger.warning(text.encode("utf-8", "backslashreplace").decode())


def notice_of_all(text: str) -> None:
    """Log a warning that every process of torchrun has, by the first alone."""
    if os.environ.get("RANK", "0") == "0":
        notice(text)
