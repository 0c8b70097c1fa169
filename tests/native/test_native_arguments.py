"""A bad argument is a ValueError that names it, says what came and what was expected; nothing is written."""

import math

import pytest
import torch


@pytest.fixture
def arrays():
    return [torch.full((2, 8), float(k)) for k in range(4)]


@pytest.fixture
def arguments(arrays):
    x_adv, x_orig, grad, out = (t.data_ptr() for t in arrays)
    return {
        **{"x_adv": x_adv, "x_orig": x_orig, "grad": grad, "out": out},
        **{"batch": 2, "numel": 8, "dtype": "float32", "norm": "linf", "step_size": 0.1, "eps": 0.2},
        **{"low": -1.0, "high": 1.0, "direction": 1, "threads": 1},
    }


BAD = [
    ("batch", -1, "-1", "0 or more"),
    ("numel", -8, "-8", "0 or more"),
    ("numel", 2**62, str(2**62), "63 bits"),
    ("dtype", "float64", "'float64'", "'float32', 'bfloat16' or 'float16'"),
    ("norm", "l1", "'l1'", "'linf' or 'l2'"),
    ("step_size", -0.1, "-0.1", "finite and 0 or more"),
    ("step_size", math.nan, "nan", "finite and 0 or more"),
    ("step_size", 1e39, "1e+39", "finite and 0 or more"),
    ("eps", -0.2, "-0.2", "0 or more"),
    ("eps", math.nan, "nan", "0 or more"),
    ("low", math.nan, "nan", "a number"),
    ("high", math.nan, "nan", "at least low"),
    ("high", -1.5, "-1.5", "at least low"),
    ("direction", 0, "0", "1 or -1"),
    ("direction", 2, "2", "1 or -1"),
    ("threads", 0, "0", "1 or more"),
    ("x_adv", 0, "null", "address"),
    ("x_orig", 0, "null", "address"),
    ("grad", 0, "null", "address"),
    ("out", 0, "null", "address"),
    ("grad", 4097, "4097", "aligned"),
]


@pytest.mark.parametrize(("name", "value", "got", "expected"), BAD)
def test_bad_values(native, arguments, arrays, name, value, got, expected):
    arguments[name] = value
    with pytest.raises(ValueError) as caught:
        native.pgd_step(**arguments)
    message = str(caught.value)
    assert message.startswith(f"{name} is ") and got in message and expected in message.split(", expected ", 1)[1]
    assert (arrays[3] == 3.0).all()


@pytest.mark.parametrize("name", ["x_adv", "x_orig", "grad"])
@pytest.mark.parametrize("elements", [-15, -1, 1, 15])
def test_partial_overlap_with_out(native, arguments, arrays, name, elements):
    memory = torch.zeros(64)
    arguments["out"] = memory[16:].data_ptr()
    arguments[name] = memory[16 + elements :].data_ptr()
    with pytest.raises(ValueError, match=f"^{name} is an array that partly overlaps out"):
        native.pgd_step(**arguments)
    arguments[name] = memory[32:].data_ptr()  # right behind the 16 elements of out
    native.pgd_step(**arguments)


def test_wrong_types(native, arguments):
    for name, value in (("batch", 2.5), ("dtype", torch.float32), ("x_adv", -1)):
        with pytest.raises(TypeError):
            native.pgd_step(**{**arguments, name: value})


def test_good_arguments(native, arguments, arrays):
    native.pgd_step(**arguments)
    # x = 0, x0 = 1, g > 0: the step to 0.1 is clamped to the ball's edge at 0.8.
    assert torch.equal(arrays[3], torch.full((2, 8), 1.0) - torch.tensor(0.2))
