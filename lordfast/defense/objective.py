"""The objective of Stage 1, Eq. 7: clean and perturbed images in one forward, and the gates told apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lordfast.adapter import collect_gates, detection_loss
from lordfast.diffusion import LatentDiffusion
from lordfast.training.examples import LatentStore, TextStore, draw_noise
from lordfast.training.loop import Objective

DET_TIMESTEPS = ("uniform", "low")


class PairedBatches:
    """Clean latents and the latents of their perturbed twins, with the same noise and the same timestep.

    Equal noise and timesteps keep the gate from reading the label off the noise level.
    """

    def __init__(
        self, clean: LatentStore, perturbed: LatentStore, text: TextStore, timesteps: int, sample: bool = False
    ) -> None:
        if len(clean) != len(perturbed):
            raise ValueError(
                f"perturbed: expected one image for each of the {len(clean)} clean ones, got {len(perturbed)}"
            )
        self.clean, self.perturbed, self.text = clean, perturbed, text
        self.timesteps, self.sample = timesteps, sample

    def __len__(self) -> int:
        return len(self.clean)

    def __call__(self, indices: Sequence[int], generators: Sequence[torch.Generator]) -> dict[str, Any]:
        clean, perturbed, noises, times = [], [], [], []
        for index, generator in zip(indices, generators, strict=True):
            state = generator.get_state()
            clean.append(self.clean.draw(index, generator, self.sample))
            generator.set_state(state)  # the posterior noise is shared too
            perturbed.append(self.perturbed.draw(index, generator, self.sample))
            noise, time = draw_noise(clean[-1].shape, self.timesteps, generator)
            noises.append(noise)
            times.append(time)
        return {
            "clean": torch.stack(clean),
            "perturbed": torch.stack(perturbed),
            "noise": torch.stack(noises),
            "timesteps": torch.tensor(times),
            "text": self.text(indices),
        }


class DefenseObjective(Objective):
    """L_Def = L_LDM(x) + lambda_adv L_LDM(x_per) + lambda_det L_det (Eq. 7 and 8).

    Args:
        lambda_adv: weight of the perturbed images' loss.
        lambda_det: weight of the detection loss, the mean over layers of BCE(clean, 0) + BCE(perturbed, 1); None
            leaves it out, for a LoRD whose gate is not trained.
        det_layers, det_tokens: its reductions, see `detection_loss`.
        det_timesteps: ``uniform``, every sample counts as much; ``low``, in proportion to alpha_bar_t = a_t^2, the
            share of the signal in z_t: w_t = alpha_bar_t / mean over t of alpha_bar_t.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        *,
        lambda_adv: float,
        lambda_det: float | None,
        det_layers: str = "mean",
        det_tokens: str = "token",
        det_timesteps: str = "uniform",
    ) -> None:
        super().__init__()
        if det_timesteps not in DET_TIMESTEPS:
            raise ValueError(f"det_timesteps must be one of {', '.join(DET_TIMESTEPS)}, got {det_timesteps!r}")
        self.unet = model.unet
        self._model = model
        self._lambda_adv, self._lambda_det = lambda_adv, lambda_det
        self._det_layers, self._det_tokens = det_layers, det_tokens
        self._mean_alpha_bar: Tensor | None = None
        if det_timesteps == "low":
            times = torch.arange(model.timesteps, device=model.device)
            self._mean_alpha_bar = model.signal_noise(times)[0].square().mean()

    def forward(  # type: ignore[override]
        self, *, clean: Tensor, perturbed: Tensor, noise: Tensor, timesteps: Tensor, text: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        count = len(clean)
        doubled = {name: torch.cat([value, value]) for name, value in text.items()}
        # The context closes before backward: recomputation under checkpointing would log the gates again.
        with collect_gates(self.unet) as gates:
            losses = self._model.loss(
                torch.cat([clean, perturbed]), torch.cat([noise, noise]), torch.cat([timesteps, timesteps]), doubled
            )
        ldm, ldm_adv = losses[:count].mean(), losses[count:].mean()
        found = {"loss": ldm + self._lambda_adv * ldm_adv, "ldm_clean": ldm, "ldm_perturbed": ldm_adv}
        if self._lambda_det is not None:
            # Made where they are used: a copy to the device would have to be waited for.
            labels = (torch.arange(2 * count, device=losses.device) >= count).float()
            # detection_loss averages over both halves of the batch; Eq. 7 adds the halves' averages.
            found["detection"] = 2 * detection_loss(
                gates,
                labels,
                det_layers=self._det_layers,
                det_tokens=self._det_tokens,
                weights=self._weights(timesteps),
            )
            found["loss"] = found["loss"] + self._lambda_det * found["detection"]
        return found

    def _weights(self, timesteps: Tensor) -> Tensor | None:
        """w_t of the detection loss for both halves, (2B,)."""
        if self._mean_alpha_bar is None:
            return None
        alpha_bar = self._model.signal_noise(timesteps)[0].square().flatten()
        return (alpha_bar / self._mean_alpha_bar).repeat(2)
