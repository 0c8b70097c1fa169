"""The tuner with made-up timings: what it chooses, keeps, throws out, refuses, and when it leaves well alone."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import torch

from lordfast.ops.backends.triton import run, tuning
from lordfast.ops.backends.triton.cases import Case
from lordfast.ops.backends.triton.configs import Config
from lordfast.ops.backends.triton.store import Store
from lordfast.ops.backends.triton.trial import Trial
from lordfast.ops.backends.triton.tuning import Tuner, untuned

CPU = torch.device("cpu")
FORWARD = Case("lord_forward", CPU, torch.float32, 40, 20, 18, 3, 5, True, False, "silu")
BACKWARD = replace(FORWARD, op="lord_backward", trains=True)
TABLE = tuple(
    Config(name, kernel, 16, 16, 16, 4, 1, "made up")
    for kernel in ("forward", "rows", "dx")
    for name in ("first", "second", "third")
)


class Trials:
    """Trials that compute nothing: `bad` holds the names of rows that are wrong, `broken` of those that raise."""

    def __init__(self, bad=(), broken=()):
        self.bad, self.broken, self.cases = bad, broken, []

    def __call__(self, case):
        self.cases.append(case)
        return self

    def run(self, configs):
        if any(config.name in self.broken for config in configs.values()):
            raise RuntimeError("out of resource: shared memory\nlong dump")
        return [configs]

    def complaint(self, outputs):
        return "output 0 is far off" if any(c.name in self.bad for c in outputs[0].values()) else None


@pytest.fixture(autouse=True)
def table(monkeypatch):
    monkeypatch.setattr(tuning, "candidates", lambda kernel, *case: tuple(c for c in TABLE if c.kernel == kernel))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LORDFAST_CACHE", str(tmp_path))
    return tmp_path / "triton"


@pytest.fixture
def make_tuner(folder):
    def make(trials, times=None, may_tune=True):
        times = times or {"first": 3.0, "second": 1.0, "third": 2.0}
        return Tuner(
            trials,
            measure=lambda run: sum(times[config.name] for config in run()[0].values()),
            may_tune=lambda case: may_tune,
        )

    return make


def names(configs):
    return {step: config.name for step, config in configs.items()}


def test_the_fastest_row_is_kept(make_tuner):
    trials = Trials()
    tuner = make_tuner(trials)
    assert names(tuner.configs(FORWARD)) == {"forward": "second"}
    assert names(tuner.configs(BACKWARD)) == {"rows": "second", "dx": "second"}
    assert tuner.refusal(FORWARD) is None
    tuner.configs(replace(FORWARD, m=64))  # 40 and 64 tokens share a bucket
    assert trials.cases == [FORWARD, BACKWARD]
    for other in (replace(FORWARD, m=65), replace(FORWARD, n=21), replace(FORWARD, dtype=torch.float16)):
        tuner.configs(other)
        assert trials.cases[-1] == other


def test_the_steps_of_the_backward_are_chosen_apart(folder):
    times = {"rows": {"first": 1, "second": 5, "third": 9}, "dx": {"first": 9, "second": 5, "third": 1}}
    tuner = Tuner(
        Trials(),
        measure=lambda run: sum(times[step][config.name] for step, config in run()[0].items()),
        may_tune=lambda case: True,
    )
    assert names(tuner.configs(BACKWARD)) == {"rows": "first", "dx": "third"}


def test_a_choice_survives_the_process(make_tuner, folder):
    make_tuner(Trials()).configs(BACKWARD)
    (path,) = folder.iterdir()
    assert json.loads(path.read_text()) == {BACKWARD.bucket: {"rows": "second", "dx": "second"}}
    later = Trials()
    tuner = make_tuner(later, times={"first": 0.0, "second": 9.0, "third": 9.0})
    assert names(tuner.configs(BACKWARD)) == {"rows": "second", "dx": "second"}
    assert not later.cases
    tuner.configs(FORWARD)
    assert set(json.loads(path.read_text())) == {FORWARD.bucket, BACKWARD.bucket}


def test_a_row_that_left_the_table_is_tuned_anew(make_tuner):
    Store().add(CPU, FORWARD.bucket, {"forward": "of old"})
    trials = Trials()
    assert names(make_tuner(trials).configs(FORWARD)) == {"forward": "second"}
    assert trials.cases


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": 1}', "\xff"], ids=repr)
def test_a_broken_file_is_ignored_and_replaced(make_tuner, folder, caplog, content):
    path = Store().path(CPU)
    path.parent.mkdir(parents=True)
    path.write_bytes(content.encode("latin1"))
    with caplog.at_level(logging.WARNING, "lordfast.ops"):
        assert names(make_tuner(Trials()).configs(FORWARD)) == {"forward": "second"}
    assert "is ignored" in caplog.text and str(path) in caplog.text
    assert json.loads(path.read_text()) == {FORWARD.bucket: {"forward": "second"}}


def test_a_folder_that_can_t_be_written(make_tuner, folder, caplog):
    folder.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, "lordfast.ops"):
        tuner = make_tuner(Trials())
        assert names(tuner.configs(FORWARD)) == {"forward": "second"}
    assert "can't be written" in caplog.text


@pytest.mark.parametrize("fault", ["bad", "broken"])
def test_a_faulty_row_is_out(make_tuner, caplog, fault):
    with caplog.at_level(logging.WARNING, "lordfast.ops"):
        tuner = make_tuner(Trials(**{fault: ("second", "first")}))
        assert names(tuner.configs(BACKWARD)) == {"rows": "third", "dx": "third"}
    assert tuner.refusal(BACKWARD) is None
    assert "the Triton configuration first+first is out" in caplog.text
    assert ("output 0 is far off" if fault == "bad" else "RuntimeError: out of resource: shared memory") in caplog.text
    assert "long dump" not in caplog.text


def test_no_good_row_refuses_the_bucket(make_tuner, folder):
    trials = Trials(bad=("first", "second", "third"))
    tuner = make_tuner(trials)
    assert "none of its configurations computes this correctly here (output 0 is far off)" in tuner.refusal(FORWARD)
    assert tuner.refusal(FORWARD) and len(trials.cases) == 1
    assert not folder.exists()


def test_nothing_is_tuned_while_a_graph_is_captured(make_tuner, folder):
    trials = Trials()
    tuner = make_tuner(trials, may_tune=False)
    assert names(tuner.configs(BACKWARD)) == {"rows": "first", "dx": "first"}
    assert tuner.refusal(BACKWARD) is None
    assert not trials.cases and not folder.exists()
    tuner._may_tune = lambda case: True
    assert names(tuner.configs(BACKWARD)) == {"rows": "second", "dx": "second"}


def test_no_tokens_tune_nothing(make_tuner):
    trials = Trials()
    assert names(make_tuner(trials).configs(replace(FORWARD, m=0))) == {"forward": "first"}
    assert not trials.cases


def test_when_to_tune(monkeypatch):
    gpu = replace(FORWARD, device=torch.device("cuda"))
    monkeypatch.setattr(tuning, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert tuning.may_tune(gpu) and not tuning.may_tune(FORWARD)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not tuning.may_tune(gpu)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(tuning, "INTERPRETED", True)
    assert not tuning.may_tune(gpu)


@pytest.mark.parametrize("op", ["lord_forward", "lord_backward", "lord_qkv_forward"])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("trains", [False, True])
def test_a_trial_passes_what_is_right_and_nothing_else(device, op, per_sample, trains):
    trial = Trial(replace(FORWARD, op=op, device=device, per_sample=per_sample, trains=trains))
    outputs = trial.run({step: next(c for c in TABLE if c.kernel == step) for step in tuning.STEPS[op]})
    assert trial.complaint(outputs) is None
    for i in range(len(outputs)):
        for spoil in (lambda t: t * 1.1, lambda t: t * float("nan")):
            wrong = [spoil(t) if j == i else t for j, t in enumerate(outputs)]
            assert f"output {i} is" in trial.complaint(wrong)


def test_a_refused_bucket_falls_back(monkeypatch, make_case, make_tuner):
    monkeypatch.setattr(run, "TUNER", make_tuner(Trials(bad=("first", "second", "third"))))
    with pytest.raises(
        ValueError, match="'triton' was forced but can't run lord_forward here: none of its configurations"
    ):
        make_case(dtype=torch.float32).fused(backend="triton")


def test_untuned_is_the_table_s_first():
    assert names(untuned(BACKWARD)) == {"rows": "first", "dx": "first"}
