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
    """

    def __init__(self, model: LatentDiffusion, *, lambda_adv: float, lambda_det: float | None) -> None:
        super().__init__()
        self.unet = model.unet
        self._model = model
        self._lambda_adv, self._lambda_det = lambda_adv, lambda_det

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
            found["detection"] = 2 * detection_loss(gates, labels)
            found["loss"] = found["loss"] + self._lambda_det * found["detection"]
        return found
