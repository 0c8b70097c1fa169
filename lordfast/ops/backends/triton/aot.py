"""Compile every shipped configuration for GPUs that need not be there, and print what it takes.

    python -m lordfast.ops.backends.triton.aot [--jobs 2] [--brief] [--json FILE]

The operations run on tensors without memory, their launches are written down instead of made, and compiled with the
specialisations that Triton would choose for them. For each: registers a thread, shared memory of a program, and stack,
which is spills. Imported by nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .configs import TABLE, candidates
from .dry import LORD, Layer, Sizes
from .launch import INTERPRETED, Launch

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes that a program may have
_POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


@dataclass(frozen=True)
class Variant:
    """A row of the table in one dtype and rank; `gate` is "token" or "sample", `ones` makes every size 1."""

    row: int
    dtype: str
    rank: int
    gate: str = "token"
    ones: bool = False

    @property
    def label(self) -> str:
        config = TABLE[self.row]
        flags = f"{' sample' * (self.gate == 'sample')}{' ones' * self.ones}"
        return f"{config.kernel}/{config.name} {self.dtype} r={self.rank}{flags}"


@dataclass(frozen=True)
class Resources:
    """What one kernel of a variant takes on one compute capability."""

    variant: str
    kernel: str
    capability: int
    registers: int
    shared: int
    stack: int


def variants(brief: bool = False) -> Iterator[Variant]:
    """Every row at its highest rank, and in the packing of the paper's rank; both gates; sizes of 1 once a kernel.

    Args:
        brief: of the rows of a kernel for elements of one size, all but the first in their hardest variant alone: at
            their highest rank, in one dtype, with a gate a token.
    """
    met: set[object] = set()
    for i, row in enumerate(TABLE):
        wide = "float32" if row.itemsize == 4 else "bfloat16"
        yield Variant(i, wide, row.max_rank)
        if not brief or (row.kernel, row.itemsize) not in met:
            if row.itemsize == 2:
                yield Variant(i, "float16", row.max_rank)
            if row.least_rank == 1:
                yield Variant(i, wide, 4)
            yield Variant(i, wide, row.max_rank, gate="sample")
        if row.kernel not in met:
            yield Variant(i, wide, 1, ones=True)
        met |= {row.kernel, (row.kernel, row.itemsize)}


def launches(variant: Variant) -> list[Launch]:
    """The launches that the variant's row is used for."""
    config, dtype = TABLE[variant.row], getattr(torch, variant.dtype)
    sizes = Sizes(1, 1, 1, variant.rank, 1) if variant.ones else Sizes(r=variant.rank)
    layer = Layer(sizes, dtype, variant.gate == "sample")
    if config.kernel == "forward":
        three = variant.gate == "token" and config.fold == "kernel"
        return layer.forward(config) + (layer.qkv(config) if three else [])
    pair = {k: candidates(k, config.itemsize, variant.rank, 1, 0)[0] for k in ("rows", "dx")} | {config.kernel: config}
    # A backward pass takes a row for each of two kernels: only the variant's own counts, and with "dx" what follows it.
    others = {"rows": ("dx", "reduce"), "dx": ("rows", "prep")}[config.kernel]
    return [launch for launch in layer.backward(pair, ("x", *LORD)) if kernel_name(launch) not in others]


def kernel_name(launch: Launch) -> str:
    """The kernel's name in the tables."""
    return str(launch.kernel.fn.__name__).removesuffix("_kernel")


def source(launch: Launch) -> ASTSource:
    """The launch as Triton would specialise it: sizes of 1 are constants, pointers and multiples of 16 aligned."""
    names = launch.kernel.arg_names
    values = {**dict(zip(names, launch.args, strict=False)), **{k: v for k, v in launch.options.items() if k in names}}
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(launch.kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(i,)] = value
            continue
        if isinstance(value, Tensor):
            signature[parameter.name] = _POINTERS[value.dtype]
        else:
            signature[parameter.name] = "i32" if isinstance(value, int) else "fp32"
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def compiled(variant: Variant, capability: int) -> list[Resources]:
    """What the variant's kernels take."""
    found = {}
    for launch in launches(variant):
        options = {k: v for k, v in launch.options.items() if k not in launch.kernel.arg_names}
        done = triton.compile(source(launch), target=GPUTarget("cuda", capability, 32), options=options)
        registers, stack = _usage(done.asm["cubin"])
        name = kernel_name(launch)
        while name in found:
            name += "'"
        found[name] = Resources(variant.label, name, capability, registers, done.metadata.shared, stack)
    return list(found.values())


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers a thread and bytes of stack."""
    program = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(program), "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"{' '.join(command)} printed no REG and STACK:\n{text}")
    return int(found[1]), int(found[2])


def _job(task: tuple[Variant, int]) -> list[Resources]:
    return compiled(*task)


def compile_all(jobs: int = 1, only: str = "", brief: bool = False) -> list[Resources]:
    """The resources of every variant whose label contains `only`, for 8.0 and 9.0."""
    tasks = [(v, capability) for v in variants(brief) if only in v.label for capability in SHARED_LIMIT]
    if jobs == 1:
        # Another process would import everything once more.
        return [r for task in tasks for r in _job(task)]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return [r for resources in pool.map(_job, tasks) for r in resources]


def faults(found: list[Resources]) -> list[str]:
    """The kernels that spill or want more shared memory than there is."""
    return [
        f"{r.variant} {r.kernel} sm_{r.capability}: {r.registers} registers, {r.shared} B shared, {r.stack} B stack"
        for r in found
        if r.stack or r.shared > SHARED_LIMIT[r.capability]
    ]


def main(argv: list[str] | None = None) -> int:
    """Print the table; 1 if a kernel spills or doesn't fit."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.aot", description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that compile")
    parser.add_argument("--only", default="", help="only variants whose label contains this")
    parser.add_argument("--brief", action="store_true", help="each kernel in all its variants for one row of the table")
    parser.add_argument("--json", type=Path, help="a file for the same as JSON")
    args = parser.parse_args(argv)
    if INTERPRETED:
        parser.error("TRITON_INTERPRET is set, nothing would be compiled; unset it")
    found = compile_all(args.jobs, args.only, args.brief)
    print(f"{'variant':40s} {'kernel':12s} {'sm':>3s} {'registers':>9s} {'shared':>7s} {'stack':>5s}")
    for r in found:
        print(f"{r.variant:40s} {r.kernel:12s} {r.capability:3d} {r.registers:9d} {r.shared:7d} {r.stack:5d}")
    if args.json:
        args.json.write_text(json.dumps([asdict(r) for r in found]), encoding="utf-8")
    wrong = faults(found)
    if wrong:
        print("\nspilling or too large:", *wrong, sep="\n  ", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
