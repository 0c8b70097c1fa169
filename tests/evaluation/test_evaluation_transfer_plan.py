"""What a transfer holds on to before it starts."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from lordfast.data import make_faces, save_png
from lordfast.evaluation.transfer import TransferConfig
from lordfast.evaluation.transfer import plan as plan_module


def test_one_model_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, loaded = plan_module.load_model, []

    def watched(source: str, **options: Any) -> Any:
        gc.collect()
        assert not [number for number, unet in enumerate(loaded) if unet() is not None], "another is still there"
        model = load(source, **options)
        loaded.append(weakref.ref(model.unet))
        return model

    monkeypatch.setattr(plan_module, "load_model", watched)
    for name in ("originals", "attacked"):
        save_png(make_faces(1, seed=7)[0].image, tmp_path / name / "a.png")
    plan = plan_module.make_plan(
        TransferConfig(
            out=tmp_path / "run",
            originals=tmp_path / "originals",
            attacked=(str(tmp_path / "attacked"),),
            to=("a=demo", "b=demo", "c=demo"),
            device="cpu",
            features="torch.nn:Flatten",
        )
    )
    assert len(loaded) == 3 and plan.sides == {"a": 64, "b": 64, "c": 64}
    # The first is still there, as its column comes first.
    for name, count in {"a": 3, "b": 4, "c": 5}.items():
        plan.models(name)
        assert len(loaded) == count
