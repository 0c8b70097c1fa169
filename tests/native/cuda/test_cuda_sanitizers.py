"""No kernel reads or writes outside its arrays, misaligned, or what nobody wrote; and such mistakes would be found."""

from __future__ import annotations

import itertools
import re

import pytest

PLANTED = {
    "global": "heap-buffer-overflow",
    "shared": "out of bounds|global-buffer-overflow",
    "misaligned": "misaligned address",
    "barrier": "thread 3 has left while others wait at a barrier",
    "barriers": "thread 3 waits at .*, thread 0 at ",
    "shuffle": "thread 0 waits alone in a shuffle",
}


@pytest.mark.parametrize("what", PLANTED)
def test_planted_mistakes_are_found(sanitized, what):
    done = sanitized(f"plant {what}\n")
    assert done.returncode != 0 and re.search(PLANTED[what], done.stdout + done.stderr), done.stdout + done.stderr


def test_unwritten_shared_memory_is_nan(host_module):
    assert str(host_module.planted(True)) == str([float("nan"), *map(float, range(30, -1, -1))])


def test_a_missing_barrier_shows_in_the_order_of_threads(host_module):
    outcomes = set()
    for order in (0, 1, 2):
        host_module.set_order(order)
        outcomes.add(str(host_module.planted(False)))
    host_module.set_order(0)
    assert len(outcomes) == 3


def check(sanitized, lines):
    done = sanitized("".join(f"{line}\n" for line in lines))
    assert done.returncode == 0 and done.stdout.splitlines() == [f"ok {line}" for line in lines], (
        done.stdout[-500:] + done.stderr[-5000:]
    )


def test_pgd_step(sanitized):
    shapes = [(1, 1), (2, 7), (3, 33), (1, 4095), (2, 4097), (1, 9003)]
    offsets = ["0 0 0 0", "1 1 1 1", "3 3 3 0", "0 1 0 0", "0 0 1 0", "1 0 0 0"]
    cases = itertools.product(shapes, range(3), range(2), offsets)
    check(sanitized, [f"pgd {b} {n} {d} {norm} {at}" for (b, n), d, norm, at in cases])


LORD = [  # m, k, n, rank, hidden, batch
    (0, 8, 8, 4, 8, 0),
    (0, 8, 8, 4, 8, 2),
    (1, 1, 1, 1, 1, 0),
    (1, 0, 5, 2, 3, 1),
    (5, 7, 9, 3, 4, 0),
    (6, 64, 32, 4, 16, 2),
    (17, 65, 130, 8, 9, 0),
    (33, 320, 64, 4, 64, 0),
    (70, 40, 72, 5, 65, 2),
    (9, 515, 24, 17, 2, 3),
    (4, 24, 72, 64, 3, 0),
]


@pytest.mark.parametrize("dtype", range(3))
def test_lord(sanitized, dtype):
    # With every other case's arrays off a 16-byte boundary: in another dtype it is the others'.
    cases = [(" ".join(map(str, sizes)), i + dtype) for i, sizes in enumerate(LORD)]
    lines = [f"lord {sizes} {dtype} {i % 3} {i % 2}" for sizes, i in cases]
    check(sanitized, lines)
