"""Attack webdataset archives, or a folder, with Ray: a task a share, each of them the command that Slurm would run.

    pip install -c constraints.txt "ray[data]==2.60.0"
    python examples/ray_attack.py --shares 64 --images "data-{000000..000099}.tar" --out attacked/ --model demo

Paths have to lie where every node sees them. What is not known here goes to `lordfast attack`. A share that fails or
whose node is lost is tried again, and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any


def command(number: int, args: argparse.Namespace, rest: list[str]) -> list[str]:
    """The command line of one share."""
    program = [sys.executable, "-m", "lordfast.cli.main", "attack", args.attack]
    return [
        *program,
        "--images",
        args.images,
        "--out",
        args.out,
        "--share",
        f"{number}/{args.shares}",
        "--resume",
        *rest,
    ]


def main() -> int:
    """Run all shares; 0 if all are done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attack", default="pgd", help="name of the attack")
    parser.add_argument("--shares", type=int, required=True, help="how many shares; some times as many as GPUs")
    parser.add_argument("--gpus", type=float, default=1.0, help="GPUs a share; 0 for CPUs")
    parser.add_argument("--images", required=True)
    parser.add_argument("--out", required=True)
    args, rest = parser.parse_known_args()

    import ray

    def attack(row: dict[str, Any]) -> dict[str, Any]:
        number = int(row["id"]) + 1
        done = subprocess.run(command(number, args, rest), capture_output=True, text=True)
        if done.returncode:
            # Ray tries a task again that raises.
            raise RuntimeError(f"share {number} of {args.shares}: {done.stderr[-2000:]}")
        return {"share": number, "said": done.stdout.strip().splitlines()[-1]}

    ray.init(ignore_reinit_error=True)
    shares = ray.data.range(args.shares, override_num_blocks=args.shares)
    options: dict[str, Any] = {"num_gpus": args.gpus} if args.gpus else {"num_cpus": 1}
    for row in shares.map(attack, max_retries=3, retry_exceptions=True, **options).iter_rows():
        print(f"{row['share']}/{args.shares}: {row['said']}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
