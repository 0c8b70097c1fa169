"""What a command makes of its settings before it works: types, numbers, devices, paths; and of where it prints."""

import io
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lordfast.cli.main import main
from lordfast.data import save_png
from lordfast.evaluation.experiments.study.config import StudyConfig
from lordfast.files import default_cache_dir
from lordfast.training.config import expand_paths
from lordfast.training.generate import GenerateConfig

Refuse = Callable[..., str]


@pytest.fixture
def refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """The one line that a command which has to fail prints, with the folder ``me`` of one image at hand."""
    monkeypatch.chdir(tmp_path)
    save_png(torch.zeros(64, 64, 3, dtype=torch.uint8).numpy(), tmp_path / "me" / "0.png")
    (tmp_path / "me" / "0.txt").write_text("a face")

    def run(words: str, yaml: str | None = None) -> str:
        if yaml is not None:
            (tmp_path / "y.yaml").write_text(yaml)
        capsys.readouterr()
        assert main([*words.split(), *(["--config", "y.yaml"] if yaml is not None else []), "--out", "out"]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and not (tmp_path / "out").exists()
        return captured.err.strip().splitlines()[-1]

    return run


COMMANDS = (
    "attack pgd --model demo --images me",
    "attack ace --model demo --images me",
    "purify blur --images me",
    "pairs super-resolution --images me",
    "stage1 --model demo --data me",
    "stage2 --model demo --instance-data me --instance-prompt x",
    "generate --model demo --prompt x",
    "evaluate --generated me --reference me",
    "transfer --originals me --attacked a=me --to demo",
    "experiment table1",
    "experiment purifiers",
    "demo --quick",
    "profile pgd",
    "bench",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_device_that_is_not_there(command: str, refuse: Refuse) -> None:
    # Where all of these are there, nobody has yet run the tests.
    for device in ("meta", "cuda:99", "cpu:1", "cpu:-1", "xpu:99", "mps:7", "nonsense"):
        assert f"device: '{device}'" in refuse(f"{command} --device {device}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("prompt: no", "prompt is false (no, off or false without quotes); expected text, in quotes"),
        ("prompt: 12", "prompt is 12; expected text"),
        ("prompt: 2024-01-01", "prompt is '2024-01-01'; expected text"),
        ("prompt:", "prompt is empty; expected text"),
        ("prompt: {a: b}", "prompt is {'a': 'b'}; expected text"),
        ("prompt: [a, b]", "prompt is ['a', 'b']; expected text"),
        ("steps: 2.5", "steps is 2.5; expected a whole number"),
        ("steps: yes", "steps is true (yes, on or true without quotes); expected a whole number"),
        ("resume: 1", "resume is 1; expected true or false"),
        ("lora: 5", "lora is 5; expected a path"),
        ("sampler: off", "sampler is false (no, off or false without quotes); expected one of ddim, dpm++"),
    ],
)
def test_a_yaml_value_of_another_type(line: str, message: str, refuse: Refuse) -> None:
    others = "".join(f"{name}\n" for name in ("model: demo", "prompt: x") if name.partition(":")[0] not in line)
    assert f"error: config: y.yaml: {message}" in refuse("generate", f"{others}{line}\n")


def test_numbers_that_yaml_writes_in_its_ways(tmp_path: Path, refuse: Refuse) -> None:
    # 1e-2 is text to YAML, and a budget, which is text, may be a number.
    (tmp_path / "y.yaml").write_text("model: demo\nimages: me\neps: 0.03\nstep_size: 1e-2\nattack_steps: 1\n")
    assert main(["attack", "pgd", "--config", "y.yaml", "--device", "cpu", "--out", "done"]) == 0


def test_numbers_that_are_none(refuse: Refuse) -> None:
    for words in (
        "stage2 --model demo --instance-data me --instance-prompt x --lr inf",
        "stage2 --model demo --instance-data me --instance-prompt x --weight-decay nan",
        "stage1 --model demo --data me --lambda-adv inf",
        "attack ace --model demo --images me --surrogate-lr inf",
        "purify blur --images me --radius inf",
        "generate --model demo --prompt x --guidance nan",
        "pairs inpainting --images me --most-area nan",
        "experiment purifiers --lr inf",
    ):
        assert "expected" in refuse(words)


def test_the_home_folder_in_every_way_to_write_a_path(
    tmp_path: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (tmp_path / "me").rename(home / "me")
    (home / "y.yaml").write_text("images: ~/me\nout: ~/yaml\n")
    assert main(["purify", "blur", "--config=~/y.yaml"]) == 0
    assert main(["purify", "blur", "--images=~/me", "--out=~/flag"]) == 0
    small = ["--steps", "1", "--strength", "0.05", "--resamples", "0", "--device", "cpu"]
    words = ["--originals=~/me", "--attacked", "a=~/flag", "--to", "demo", "--out=~/t", *small]
    assert main(["transfer", *words]) == 0
    assert main(["report", "~/flag", "--out=~/page.html"]) == 0
    assert {path.name for path in home.iterdir()} >= {"yaml", "flag", "t", "page.html"}
    assert not (tmp_path / "~").exists()
    # A prompt is no path.
    config = expand_paths(GenerateConfig(out=Path("~/o"), model="~/m", prompt="~/p", lora=Path("~/l")))
    assert config == GenerateConfig(out=home / "o", model=f"{home}/m", prompt="~/p", lora=home / "l")
    study = {
        "attacks": {"mist": {"target": "~/t.png"}},
        "stage2": {"validation_prompt": "~/p"},
        "set": ("a.target=~/t",),
    }
    found = expand_paths(StudyConfig(out=Path("o"), datasets=("a=~/d",), **study))
    assert found.attacks == {"mist": {"target": f"{home}/t.png"}} and found.stage2 == study["stage2"]
    assert found.datasets == (f"a={home}/d",) and found.set == (f"a.target={home}/t",)
    assert "there is no home folder in place of ~nobody-of-this-name" in refuse(
        "purify blur --images ~nobody-of-this-name/x"
    )


def test_help_ends_in_a_terminal_of_any_width(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    for columns in ("1", "2", "0", "-3", "wide", "999999999"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(["purify", "blur", "--help"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert any("--radius" in line for line in lines) and max(map(len, lines)) < 2000


def test_output_that_the_terminal_cannot_print(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_written, encoding="ascii"))
    assert main(["purify", "blur", "--images", "me", "--out", "bücher"]) == 0
    sys.stdout.flush()
    assert b"b\\xfccher" in bytes_written.getvalue()


@pytest.mark.parametrize("limit", [10, 3_000, 200_000])
def test_a_full_disk(limit: int, refuse: Refuse, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "stage2 --model demo --instance-data me --instance-prompt x --steps 1 --device cpu --out full"
    before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        # A limit on the size of files fails as a full disk does.
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[0][1]))
        status = main(words.split())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[0])
        signal.signal(signal.SIGXFSZ, before[1])
    assert status == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "File too large" in error and "full/" in error
    assert not list((tmp_path / "full").rglob(".*"))
    # What is there can be gone on with.
    assert main([*words.split(), *(["--resume"] if (tmp_path / "full" / "config.yaml").exists() else [])]) == 0


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("LORDFAST_CACHE", "")
    assert default_cache_dir() == tmp_path / ".cache" / "lordfast"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_cache_dir() == tmp_path / ".cache" / "lordfast"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "lordfast"
    monkeypatch.setenv("LORDFAST_CACHE", "~/mine")
    assert default_cache_dir() == tmp_path / "mine"


def test_a_user_without_a_home_folder(refuse: Refuse, tmp_path: Path) -> None:
    code = (
        "import pwd, sys\ndef none(uid): raise KeyError(uid)\npwd.getpwuid = none\nfrom lordfast.cli.main import main\n"
    )
    words = ["attack", "fgsm", "--model", "demo", "--images", "me", "--device", "cpu", "--out", "done"]
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "LORDFAST_CACHE", "XDG_CACHE_HOME")}
    command = [sys.executable, "-c", f"{code}sys.exit(main(sys.argv[1:]))", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no home folder for a cache" in done.stderr and "LORDFAST_CACHE" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"me", "done"}
    assert not Path(done.stderr.partition("cache: ")[2].partition(" is used")[0]).exists()
