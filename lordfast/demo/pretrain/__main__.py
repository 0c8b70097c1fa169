"""``python -m lordfast.demo.pretrain``; under ``torchrun --nproc-per-node N -m`` on several processes."""

from __future__ import annotations

import sys

import tyro

from lordfast.demo.pretrain.stages import PretrainConfig, run_pretrain
from lordfast.training.interrupt import Interrupted


def main() -> int:
    """Parse the flags and train."""
    config = tyro.cli(PretrainConfig, prog="python -m lordfast.demo.pretrain")
    try:
        run_pretrain(config)
    except Interrupted as stopped:
        print(f"Stopped {stopped}; the same command with --resume goes on from there.", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
