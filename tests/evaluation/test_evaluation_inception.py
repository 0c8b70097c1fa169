"""FID's Inception: its architecture by names and by numbers of the original implementation, and weights from a file."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from lordfast.evaluation import inception as module
from lordfast.evaluation.inception import Inception, load_inception
from lordfast.evaluation.measure import Unavailable

# Of torch-fidelity 0.4.0's network, resized as torchmetrics 1.9 does: its 566 names and shapes, and what it makes of
# `images` with the weights of `network`, a column of each branch of the last block.
NAMES, SHAPES = 566, "760681d791cb624e1bf7a2e802a68933dd17aa5e3109fcf498d9dfa521bc10d7"
COLUMNS = [100, 400, 768, 1200, 1600, 1856]
EXPECTED = [
    [7.06701, 0.28816, 0.67327, 10.59818, 8.76028, 4.43337],
    [7.00532, 0.40191, 0.66123, 10.44548, 8.56378, 4.20822],
]
TOTAL = 10415.44


def images() -> torch.Tensor:
    rng = np.random.RandomState(1)
    return torch.from_numpy(rng.randint(0, 256, (2, 3, 64, 80)).astype(np.uint8))


@pytest.fixture(scope="module")
def network() -> Inception:
    """Random weights that carry the signal through all layers."""
    rng = np.random.RandomState(0)
    made = Inception()
    for name, value in made.state_dict().items():
        if name.endswith("conv.weight"):
            value.copy_(torch.from_numpy(rng.randn(*value.shape) * (2 / value[0].numel()) ** 0.5))
        elif name.endswith("running_var"):
            value.copy_(torch.from_numpy(rng.uniform(0.5, 1.5, value.shape)))
        elif name.endswith(("running_mean", "bn.bias")):
            value.copy_(torch.from_numpy(rng.randn(*value.shape) * 0.1))
    return made.eval()


def test_the_weights_are_those_of_the_published_file() -> None:
    with torch.device("meta"):
        state = Inception().state_dict()
    described = "\n".join(f"{name} {tuple(value.shape)}" for name, value in sorted(state.items()))
    assert len(state) == NAMES
    assert hashlib.sha256(described.encode()).hexdigest() == SHAPES


def test_features_are_those_of_torch_fidelity(network: Inception) -> None:
    found = network(images())
    assert found.shape == (2, 2048)
    np.testing.assert_allclose(found[:, COLUMNS].numpy(), EXPECTED, rtol=1e-3, atol=1e-3)
    assert float(found.double().sum()) == pytest.approx(TOTAL, rel=1e-4)


def saved(state: dict[str, torch.Tensor], path: Path) -> Path:
    """A file with one number per tensor: as good as 95 MB where the numbers don't matter."""
    torch.save({name: value.flatten()[0].expand(value.shape) for name, value in state.items()}, path)
    return path


def test_weights_from_a_file(network: Inception, tmp_path: Path) -> None:
    one = load_inception(saved(network.state_dict(), tmp_path / "one.pth"))
    assert not one.training and not any(p.requires_grad for p in one.parameters())
    name = "Mixed_6b.branch7x7_2.conv.weight"
    assert set(one.state_dict()[name].unique().tolist()) == {float(network.state_dict()[name].flatten()[0])}
    again = load_inception(tmp_path / "one.pth")
    changed = {**network.state_dict(), name: network.state_dict()[name] + 1}
    other = load_inception(saved(changed, tmp_path / "other.pth"))
    assert one.cache_key == again.cache_key != other.cache_key


def test_weights_that_do_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable, match=r"inception: .*nowhere\.pth can't be read: "):
        load_inception(tmp_path / "nowhere.pth")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(Unavailable, match=r"text\.pth can't be read"):
        load_inception(tmp_path / "text.pth")
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(Unavailable, match=r"other\.pth holds other weights than those of FID's Inception"):
        load_inception(tmp_path / "other.pth")

    def offline(url: str, **options: object) -> None:
        assert url == module.URL and options["check_hash"]
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    with pytest.raises(Unavailable, match="can't be downloaded from https://.*no route to host; --inception-weights"):
        load_inception()
