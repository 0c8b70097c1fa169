"""Environments with the oldest, the newest and the pinned versions of what lordfast needs, and its tests in each.

    pip install nox==2026.10.20 uv==0.13.9
    python .ci/versions.py oldest newest py310 py311 py312 py313      # or some of them; -- ARGS go to pytest

* oldest: every lower bound of pyproject.toml, on Python 3.10
* newest: what an installation without constraints takes today, on the newest Python
* py310 to py313: the versions of constraints.txt

Each builds the source distribution, from that the wheel, installs and imports it, and runs the tests of the adapter,
the models, training and the command line. Needs the Python versions on PATH, a C++ compiler, and about 10 GB for torch.
"""

import sys
from pathlib import Path

import nox

PINNED = {"py310": "3.10", "py311": "3.11", "py312": "3.12", "py313": "3.13"}
OLDEST, NEWEST = PINNED["py310"], PINNED["py313"]
TESTS = ("adapter", "diffusion", "training", "cli")
ROOT = Path(__file__).parents[1]

nox.options.envdir = str(ROOT / "build" / "nox")
nox.options.default_venv_backend = "uv"
nox.options.download_python = "never"


def check(session: nox.Session, *options: str) -> None:
    """Install the package from its source distribution with uv's `options`, and run the tests in the environment."""
    session.chdir(ROOT)
    built = Path(session.create_tmp()) / "dist"
    session.run("uv", "build", "--quiet", "--clear", "--python", session.python, "--out-dir", str(built))
    (wheel,) = built.glob("*.whl")
    session.install(f"lordfast[test] @ {wheel.resolve().as_uri()}", "--reinstall-package", "lordfast", *options)
    session.run("uv", "pip", "list", "--quiet")
    session.chdir(built)
    session.run("python", "-c", "import lordfast._C as c; print(c.__file__)")
    session.chdir(ROOT)
    tests = [f"tests/{part}" for part in TESTS]
    session.run("pytest", "-n", "auto", "--dist", "worksteal", "-q", *(session.posargs or tests))


@nox.session(python=OLDEST)
def oldest(session: nox.Session) -> None:
    bounds = Path(session.create_tmp()) / "oldest.txt"
    session.chdir(ROOT)
    lowest = ("--no-deps", "--resolution", "lowest-direct", "--python-version", OLDEST)
    session.run("uv", "pip", "compile", "--quiet", *lowest, "pyproject.toml", "-o", str(bounds), silent=True)
    check(session, "-c", str(bounds))


@nox.session(python=NEWEST)
def newest(session: nox.Session) -> None:
    check(session, "--upgrade")


def pinned(session: nox.Session) -> None:
    check(session, "-c", "constraints.txt")


for name, python in PINNED.items():
    nox.session(pinned, python=python, name=name)

if __name__ == "__main__":
    names = [word for word in sys.argv[1:] if word.startswith("py") or word in ("oldest", "newest")]
    rest = sys.argv[1 + len(names) :]
    sys.argv[1:] = ["-f", __file__, "-s", *names, *rest]
    nox.main()
