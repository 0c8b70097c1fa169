"""A bad argument of LoRD's functions is a ValueError that names it, what came and what was expected."""

import math

import pytest
import torch

SIZES = {"batch": 2, "tokens": 3, "k": 4, "n": 5, "r": 2, "h": 3}
WEIGHTS = ("lord_A", "lord_B", "lord_B_adv", "w1", "b1", "w2", "b2")
GRADIENTS = ("dx", "dA", "dB", "dB_adv", "dw1", "db1", "dw2", "db2")


@pytest.fixture
def call(native):
    """call(direction, **changed): with good arguments but for those; every array is 64 floats long."""
    memory = torch.full((40, 64), 7.0)
    rows = iter(memory)
    address = {name: next(rows).data_ptr() for name in (*WEIGHTS, *GRADIENTS)}
    address |= {name: next(rows).data_ptr() for name in ("x", "y", "gate_logit", "u", "grad_y", "grad_logit")}
    options = {"dtype": "float32", "activation": "silu", "scaling": 2.0, "per_sample": False}
    options |= {"has_base": False, "threads": 1}

    def run(direction, **changed):
        values = {**SIZES, **address, **options, **changed}
        common = {name: values[name] for name in (*options, "x", "gate_logit", "u")}
        common["sizes"] = changed.get("sizes", tuple(values[name] for name in SIZES))
        common["weights"] = changed.get("weights", tuple(values[name] for name in WEIGHTS))
        if direction == "forward":
            return native.cpu_lord_forward(y=values["y"], **common)
        gradients = changed.get("gradients", tuple(values[name] for name in GRADIENTS))
        rest = {name: values[name] for name in ("grad_y", "grad_logit")}
        return native.cpu_lord_backward(gradients=gradients, **rest, **common)

    run.memory = memory
    return run


BOTH = [
    *[(name, -1, "-1", "0 or more") for name in ("batch", "tokens", "k")],
    *[(name, 0, "0", "1 or more") for name in ("n", "r", "h")],
    *[(name, 2**24 + 1, str(2**24 + 1), "at most 2^24") for name in ("k", "n", "r", "h")],
    *[(name, 2**40 + 1, str(2**40 + 1), "at most 2^40") for name in ("batch", "tokens")],
    ("tokens", 2**31, str(2**31), "at most 2^56"),
    ("dtype", "float64", "'float64'", "'float32', 'bfloat16' or 'float16'"),
    ("activation", "tanh", "'tanh'", "'relu', 'silu' or 'gelu'"),
    ("scaling", math.nan, "nan", "a finite float"),
    ("scaling", 1e39, "1e+39", "a finite float"),
    ("threads", 0, "0", "1 or more"),
    ("sizes", (1, 2), "2 numbers", "batch, tokens, k, n, r, h"),
    ("weights", (0,) * 8, "8 numbers", "lord_A, lord_B"),
    *[(name, 0, "null", "address") for name in (*WEIGHTS, "x", "gate_logit", "u")],
    *[(name, 4098, "4098", "aligned") for name in (*WEIGHTS, "x", "gate_logit", "u")],
]
FORWARD = [("y", 0, "null", "address"), ("y", 4098, "4098", "aligned")]
BACKWARD = [
    ("gradients", (0,) * 7, "7 numbers", "of x, lord_A"),
    *[(name, 4098, "4098", "aligned") for name in (*GRADIENTS, "grad_y", "grad_logit")],
]


@pytest.mark.parametrize(
    ("direction", "name", "value", "got", "expected"),
    [("forward", *row) for row in BOTH + FORWARD] + [("backward", *row) for row in BOTH + BACKWARD],
)
def test_bad_values(call, direction, name, value, got, expected):
    changed = {name: value, **({"batch": 2**31} if expected == "at most 2^56" else {})}
    with pytest.raises(ValueError) as caught:
        call(direction, **changed)
    message = str(caught.value)
    assert message.startswith(f"{name} is ") and got in message and expected in message.split(", expected ", 1)[1]
    assert (call.memory == 7.0).all()


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_wrong_types(call, direction):
    for name, value in (("k", 2.5), ("dtype", torch.float32), ("x", -1), ("lord_A", "here"), ("sizes", 6)):
        with pytest.raises((TypeError, RuntimeError)):
            call(direction, **{name: value})
    assert (call.memory == 7.0).all()


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_good_arguments(call, direction):
    call(direction)
    assert (call.memory != 7.0).any()


def test_memory_that_is_not_there(call):
    """std::bad_alloc reaches Python as MemoryError, and the process goes on."""
    with pytest.raises(MemoryError):
        call("forward", n=2**24, r=2**24, h=1)
    call("forward")
