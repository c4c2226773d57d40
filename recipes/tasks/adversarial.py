"""Second stage of the live codec: reconstruction losses as before, and discriminators to deceive.

Codec and discriminators step at once, each by the gradient of its own loss where both stood before. That is one
backward pass through the sum of two losses that share no parameter, and one optimizer with groups of its own for the
discriminators (Adam treats every element by itself). So a step is a step: schedules, averaging, the guard against bad
batches, several processes and resuming need no second bookkeeping, as two optimizers stepped by hand would. Alternate
steps (Goodfellow et al. 2014) would run the discriminators on the recorded speech twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from codec.discriminators import Discriminators, discriminator_loss, feature_loss, generator_loss
from engine.errors import ConfigError
from recipes.harness.optim import make_optimizer
from recipes.recipe import AdversarialRecipe
from recipes.tasks.codec import CodecTask


class AdversarialCodecTask(CodecTask):
    """CodecTask with discriminators; validated and exported is the codec alone."""

    recipe: AdversarialRecipe
    labels: ClassVar[dict[str, str]] = CodecTask.labels | {
        "adversarial": "loss of deceiving", "features": "distance of the discriminators' features",
        "discriminator": "loss of the discriminators (0.5: they guess)",
    }  # fmt: skip

    def __init__(self, recipe: AdversarialRecipe) -> None:
        super().__init__(recipe)
        if not 0 < recipe.discriminator_frames < recipe.crop_frames:
            raise ConfigError(
                f"discriminator_frames lies between 0 and crop_frames, {recipe.crop_frames}; "
                f"got {recipe.discriminator_frames}"
            )
        self.discriminators = Discriminators(
            recipe.periods, recipe.period_channels, recipe.windows, recipe.window_channels
        )

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """(B, N) -> the codec's loss plus the discriminators'."""
        step, levels = self.batches_done, self.draw_levels(len(batch), self.batches_done)
        if step < self.recipe.discriminator_steps:
            parts = {"discriminator": self.play(batch, self._decoded(batch, levels))["discriminator"]}
            total = torch.zeros_like(parts["discriminator"])
        else:
            parts, out = self.losses(batch, levels, step < self.recipe.bypass_steps)
            parts |= self.play(batch, out.wav)
            total = (
                parts["total"]
                + self.recipe.adversarial_weight * parts["adversarial"]
                + self.recipe.feature_weight * parts["features"]
            )
            parts["total"] = total
        self.log_dict({f"train/{name}": value.detach() for name, value in parts.items()})
        return total + parts["discriminator"]

    @torch.no_grad()
    def _decoded(self, batch: Tensor, levels: Tensor) -> Tensor:
        """(B, N) -> what the codec returns, without a change to it: in training, its codebooks follow what they see."""
        self.model.eval()
        wav: Tensor = self.model(batch, levels).wav
        self.model.train()
        return wav

    def play(self, batch: Tensor, decoded: Tensor) -> dict[str, Tensor]:
        """(B, N), (B, N) one lag late -> "adversarial" and "features" of the codec, "discriminator" of the others.

        No gradient of the first two reaches a discriminator, none of the third the codec.
        """
        recorded, decoded = self._excerpts(batch, decoded)
        real = self.discriminators(recorded)
        judged = discriminator_loss(real, self.discriminators(decoded.detach()))
        self.discriminators.requires_grad_(False)
        fake = self.discriminators(decoded)
        self.discriminators.requires_grad_(True)
        real = [[layer.detach() for layer in features] for features in real]
        return {"adversarial": generator_loss(fake), "features": feature_loss(real, fake), "discriminator": judged}

    def _excerpts(self, batch: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N), (B, N) one lag late -> the same random stretch of both, brought to the level of speech 1.

        The stretch depends on seed and step alone, as the crops do. Crops differ in level by more than 20 dB; that of
        the recorded crop as a whole is taken for both, so that errors of level and pauses stay what they are.
        """
        decoded, recorded = self.aligned(decoded, batch)
        length = self.recipe.discriminator_frames * self.recipe.model.samples_per_frame
        rng = np.random.default_rng((self.recipe.seed, 2, self.batches_done))
        begin = int(rng.integers(recorded.shape[1] - length + 1))
        gain = recorded.square().mean(1, keepdim=True).clamp_min(1e-8).rsqrt()
        stretch = slice(begin, begin + length)
        return recorded[:, stretch] * gain, decoded[:, stretch] * gain

    def configure_optimizers(self) -> Any:
        recipe = self.recipe
        optimizer = make_optimizer(self.model, recipe)
        of_codec = len(optimizer.param_groups)
        optimizer.add_param_group(
            {
                "params": list(self.discriminators.parameters()),
                "lr": recipe.discriminator_rate,
                "weight_decay": 0.0,
                "orthogonal": False,
            }
        )

        def factor(begin: int) -> Callable[[int], float]:
            """As `warmup_stable_decay`, the warm-up from step `begin` on."""

            def at(step: int) -> float:
                warm = max(0, step - begin + 1) / max(1, recipe.warmup_steps)
                return min(1.0, warm, max(0.0, (recipe.max_steps - step) / max(1, recipe.decay_steps)))

            return at

        schedule = LambdaLR(optimizer, [factor(recipe.discriminator_steps)] * of_codec + [factor(0)])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip both sides apart: a steep loss of one must not slow the other."""
        for side in (self.model, self.discriminators):
            torch.nn.utils.clip_grad_norm_(side.parameters(), self.recipe.clip_norm)
