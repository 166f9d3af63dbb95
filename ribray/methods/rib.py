"""RIB refinement of one image (Lee et al., NeurIPS 2021, section 3; docs/method.md, section 2).

The classifier is fine-tuned on a single image with a loss that no activation saturates, so that information
flows from regions it did not need for its decision. The class activation maps of every step are summed up.

Shapes:
    V = 2 views of a scale (the image and its horizontal flip), R rows of the target's logits (V for each
    scale in the loss), C classes of the classifier, P present classes of the image, n extra samples, S side
    of their crops, h w cells of a map (different at each scale).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ribray.config import CAM, RIB, RIBConfig
from ribray.errors import ImageError
from ribray.methods.loss import LOSSES
from ribray.methods.method import Extras, ExtraSamples, Maps, Method, Passes, Refined, merge_views, to_maps
from ribray.methods.pooling import pool
from ribray.methods.stop_reasons import EXPLOSION, FINISHED, TARGET_LOSS

_DIVISION_GUARD = 1e-5
_DECAY_POWER = 0.9
_EXTRAS_AT_ONCE_ON_CPU = 10  # no more memory than the target's views take; the loss is a sum over rows


@dataclass
class Trace:
    """Inner values of one refinement, to be compared with recorded ones.

    Attributes:
        maps: ``maps[k][i]`` (P, h, w), what step k added at scale i; zeros or missing where an explosion ended step k.
        logits: per step that came to them the pooled logits (R + n, C), the target's rows first.
    """

    maps: list[list[np.ndarray]] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)

    def add(self, maps: Sequence[Tensor], logits: Tensor | None) -> None:
        """Note what a step added, and its logits where it came to them."""
        self.maps.append(to_maps(maps))
        if logits is not None:
            self.logits.append(logits.cpu().numpy())


class Refiner(Method):
    """Refines images one after the other, each from the same initial weights W₀.

    After ``refine`` the classifier has the last image's weights. A result depends on W₀, the configuration and the
    arguments of ``refine`` alone, never on earlier images. In bfloat16 convolutions take copies of float32 weights;
    their sums of gradients, the head and the pooling stay in float32.
    """

    Settings = RIBConfig

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        config = self.config
        if config.scales[0] != 1.0:
            raise ValueError(f"The first scale must be 1.0, whose map the explosion check reads, not {config.scales}.")
        self.loss = LOSSES[config.loss]
        self.in_loss = [scale in config.loss_scales for scale in config.scales]
        backbone, head = self.classifier.learnable_groups()
        self.groups = [(backbone, config.lr), (head, config.lr * config.head_lr_factor)]
        self.learnable = [*backbone, *head]
        self.initial_weights = [parameter.detach().clone() for parameter in self.learnable]
        # Where steps are recorded, a rate is read from the GPU's memory.
        self.rates: list[Any] = [
            torch.tensor(lr, device=self.device) if self.recorder.is_on else lr for _, lr in self.groups
        ]
        self.optimizer = torch.optim.SGD(
            [{"params": parameters, "lr": lr} for (parameters, _), lr in zip(self.groups, self.rates, strict=True)],
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.momenta = [torch.zeros_like(each, requires_grad=False) for each in self.learnable if config.momentum]
        for parameter, momentum in zip(self.learnable, self.momenta, strict=False):
            self.optimizer.state[parameter]["momentum_buffer"] = momentum
        self.no, self.yes = torch.tensor([False, True], device=self.device)
        # A CPU knows a step's stop tests before its backward pass and can spare it. Asking a GPU that early
        # would drain its queue, so there the tests are read after the update was queued, which no one sees if
        # it was too much: the maps of a step never depend on its own update.
        self.reads_before_update = self.device.type == "cpu"

    def refine(
        self, views: Sequence[Tensor], present: Sequence[int], extras: Extras, trace: Trace | None = None
    ) -> Refined:
        """Refine the maps of one image; its losses are those of every step whose update was used.

        Args:
            views: as in `Method.refine`, present and extras, too.
            trace: collects inner values; the last step then computes its extra samples and its loss, too.

        Raises:
            ImageError: the loss or a map is not finite.
        """
        self.check(views, present)
        classes = torch.tensor(sorted(present), device=self.device)  # (P,)
        labels = torch.zeros(1, self.classifier.classes, dtype=torch.bool, device=self.device)
        labels[0, classes] = True  # (1, C)
        sums: list[Tensor] = []  # per scale (C, h, w)
        kept: list[list[Tensor]] = []
        losses = [torch.zeros((), device=self.device)]  # before any step, then of every step
        target_losses: list[float] = []

        with self.exact_float32(), self.recorder.at_work():
            self.recorder(self._begin)
            stems = self.recorder(self._stems, *(view.to(self.device, non_blocking=True) for view in views))
            for step in range(self.config.iterations):
                last = step == self.config.iterations - 1
                target = self._target_pass(labels, step, losses[-1], stems, learn=not last)
                sums = _added(sums, target.maps)
                if step == 0 or self.config.keep_steps:
                    kept.append(sums)

                stop, logits = _StopTest(target, self.config, step), None
                if self.reads_before_update:
                    stop.read()
                useful = not (last or stop.reason)  # on a GPU the reason may still be on its way
                if target.logits is not None and (useful or trace is not None):
                    total, logits = self._learn(step, target, labels, extras(step), update=useful)
                    losses.append(total)

                stop.read()
                if stop.reason != EXPLOSION:
                    target_losses.append(stop.target_loss)
                if trace is not None:
                    trace.add([each[classes] for each in target.maps], None if stop.reason == EXPLOSION else logits)
                if stop.reason:
                    break

        def present_maps(all_maps: list[Tensor]) -> Maps:
            return to_maps([each[classes] for each in all_maps])

        traced_last = trace is not None and stop.reason != EXPLOSION
        return Refined(
            classes=classes.cpu().numpy(),
            maps={CAM: present_maps(kept[0]), RIB: present_maps(sums)},
            steps=step + 1,
            stop_reason=stop.reason or FINISHED,
            by_step={RIB: [present_maps(each) for each in kept]} if self.config.keep_steps else {},
            losses=[loss.item() for loss in losses[1:][: step + traced_last]],
            numbers={"target_losses": target_losses},
        )

    def _target_pass(
        self, labels: Tensor, step: int, loss_before: Tensor, stems: list[Tensor], learn: bool
    ) -> "_TargetPass":
        """Run the target's views through the network, and on a GPU back again where the step learns."""
        may_explode = self.yes if step > 0 else self.no
        if self.reads_before_update:
            return self._see_target(labels, may_explode, loss_before, stems, learn)
        work = self._see_and_learn if learn else self._see
        numbers, logits, loss, *maps = self.recorder(work, labels, may_explode, loss_before, *stems)
        return _TargetPass(maps, logits, numbers, loss if learn else None)

    def _see_and_learn(
        self, labels: Tensor, may_explode: Tensor, loss_before: Tensor, *stems: Tensor, learn: bool = True
    ) -> list[Tensor]:
        target = self._see_target(labels, may_explode, loss_before, stems, learn)
        assert target.logits is not None
        return [target.numbers, target.logits.detach(), self._learn_target(target, labels, learn), *target.maps]

    def _see(self, *inputs: Tensor) -> list[Tensor]:
        return self._see_and_learn(*inputs, learn=False)

    def _see_target(
        self, labels: Tensor, may_explode: Tensor, loss_before: Tensor, stems: Sequence[Tensor], learn: bool
    ) -> "_TargetPass":
        """Run the target's views through the network: this step's maps, explosion check and logits."""
        maps: list[Tensor] = []
        rows: list[Tensor] = []
        exploded = torch.zeros((), dtype=torch.bool, device=self.device)

        def numbers(target_loss: Tensor) -> Tensor:
            present = labels[0, :, None, None]
            total = torch.stack([each.where(present, 0.0).sum() for each in maps]).sum()
            return torch.stack([each.float() for each in (exploded, target_loss, total, loss_before)])

        for scale, stem in enumerate(stems):
            with torch.set_grad_enabled(learn and self.in_loss[scale]):
                cams = self.network.cams(stem)  # (V, C, h, w)
            merged = merge_views(cams.detach())  # (C, h, w)
            maps.append(merged.where(~exploded, 0.0))
            if scale == 0:
                exploded = self._explodes(merged, labels) & may_explode
                if self.reads_before_update and exploded:
                    return _TargetPass(maps, None, numbers(loss_before))
            if self.in_loss[scale]:
                rows.append(self._pool(cams, labels.expand(len(cams), -1)))
        logits = torch.cat(rows)  # (R, C)
        return _TargetPass(maps, logits, numbers((logits.detach() * labels).sum()))

    def _explodes(self, merged: Tensor, labels: Tensor) -> Tensor:
        """Say whether too much of a present class lights up in ``merged`` (C, h, w), this step's map of scale 1.0."""
        relative = merged / (merged.amax((1, 2), keepdim=True) + _DIVISION_GUARD)
        covered = ((relative > self.config.explode_threshold) & labels[0, :, None, None]).any(0)  # (h, w)
        return covered.double().mean() > self.config.explode_ratio

    def _learn(
        self, step: int, target: "_TargetPass", labels: Tensor, extras: tuple[Tensor, Tensor] | None, update: bool
    ) -> tuple[Tensor, Tensor]:
        """Take one step of SGD on target and extra samples; return the loss and all logits (R + n, C).

        The loss is a sum over rows, so each part runs backward on its own: memory never holds all of them.
        """
        assert target.logits is not None
        total = target.loss if target.loss is not None else self._learn_target(target, labels, update)
        rows = [target.logits.detach()]
        if extras is not None and len(extras[0]):
            images, extra_labels = extras
            at_once = _EXTRAS_AT_ONCE_ON_CPU if self.device.type == "cpu" else len(images)
            for part, part_labels in zip(images.split(at_once), extra_labels.split(at_once), strict=True):
                inputs = (each.to(self.device, non_blocking=True) for each in (part, part_labels))
                loss, logits = self.recorder(self._learn_extras if update else self._see_extras, *inputs)
                total = total + loss
                rows.append(logits)
        if update:
            decay = (1 - step / self.config.iterations) ** _DECAY_POWER
            for group, rate, (_, lr) in zip(self.optimizer.param_groups, self.rates, self.groups, strict=True):
                group["lr"] = rate.fill_(lr * decay) if self.recorder.is_on else lr * decay
            self.recorder(self._update)
        return total, torch.cat(rows)

    def _learn_target(self, target: "_TargetPass", labels: Tensor, update: bool = True) -> Tensor:
        """Forget the gradients of the step before, run the target's backward, and return its loss."""
        assert target.logits is not None
        self.optimizer.zero_grad(set_to_none=False)
        loss = self.loss(target.logits, labels.expand(len(target.logits), -1))
        if update:
            loss.backward()
        return loss.detach()

    def _learn_extras(self, images: Tensor, labels: Tensor, update: bool = True) -> list[Tensor]:
        """Run extra samples forward and backward; return their loss and logits."""
        with torch.set_grad_enabled(update):
            logits = self._pool(self.network.cams(self.network.stem(images)), labels)
            loss = self.loss(logits, labels)
        if update:
            loss.backward()
        return [loss.detach(), logits.detach()]

    def _see_extras(self, images: Tensor, labels: Tensor) -> list[Tensor]:
        return self._learn_extras(images, labels, update=False)

    def _update(self) -> list[Tensor]:
        """Move the weights along the gradients that backward passes have left."""
        self.network.give_gradients()
        self.optimizer.step()
        self.network.refresh()
        return []

    def _stems(self, *views: Tensor) -> list[Tensor]:
        """Return the stem's output for the views of every scale (V, 3, H, W); it never learns."""
        return [self.network.stem(view) for view in views]

    def _pool(self, cams: Tensor, labels: Tensor) -> Tensor:
        config = self.config
        return pool(cams, labels, config.pooling, config.pooling_threshold, config.pooling_first_classes)

    def restore(self) -> None:
        """Give the classifier its initial weights W₀ again."""
        self._begin()

    @torch.no_grad()
    def _begin(self) -> list[Tensor]:
        torch._foreach_copy_(self.learnable, self.initial_weights)
        if self.momenta:
            torch._foreach_zero_(self.momenta)
        self.network.refresh()
        return []

    @classmethod
    def extra_samples(cls, config: RIBConfig) -> ExtraSamples | None:
        """Return the B - 1 samples of all steps but the last, which updates nothing."""
        if config.batch_size == 1:
            return None
        return ExtraSamples(
            per_step=config.batch_size - 1,
            steps=config.iterations - 1,
            crop_size=config.crop_size,
            resize_long=config.resize_long,
            seed=config.seed,
            setting=f"refine.batch_size={config.batch_size}",
            alone_with="refine.batch_size=1",
            of_no_use="add nothing to L_RIB" if config.loss == "rib" else None,
        )

    @classmethod
    def cost(cls, config: RIBConfig, area: float, classes: float, extras: int) -> Passes:
        """Return the pixels of K steps: the target's stem passes once, and the last step has no backward pass."""
        target, learned = (area * sum(2 * scale**2 for scale in each) for each in (config.scales, config.loss_scales))
        updates, parts = config.iterations - 1, math.ceil(extras / _EXTRAS_AT_ONCE_ON_CPU)
        drawn = updates * extras * config.crop_size**2
        calls = config.iterations * len(config.scales) + updates * (parts + 1)  # an update counts as one, too
        return Passes(target + drawn, config.iterations * target + drawn, updates * learned + drawn, calls)


@dataclass(frozen=True)
class _TargetPass:
    """The target's part of one step.

    Attributes:
        maps: per scale (C, h, w), to be added to the sums; zeros or missing behind an explosion.
        logits: (R, C), with gradient unless it was used; None where an explosion ended the step before there were any.
        numbers: (4,) float32: whether the maps explode, the sum of the present classes' logits, the sum of their maps,
            and the loss of the step before.
        loss: () the target's, where the backward pass has been.
    """

    maps: list[Tensor]
    logits: Tensor | None
    numbers: Tensor
    loss: Tensor | None = None


class _StopTest:
    """The numbers that decide whether a step is the last one, on their way from the device to the host.

    On a GPU the copy is queued where the numbers are computed, and ``read`` waits for it alone, not for what
    was queued afterwards.
    """

    def __init__(self, target: _TargetPass, config: RIBConfig, step: int) -> None:
        values = target.numbers
        self._event: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = torch.empty(values.shape, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._values = values
        self._config = config
        self._step = step
        self.reason: str | None = None
        self.target_loss = math.nan

    def read(self) -> None:
        """Wait for the numbers and set ``reason``, which stays None where the refinement goes on.

        Raises:
            ImageError: one of them is not finite.
        """
        if self._event is not None:
            self._event.synchronize()
        exploded, self.target_loss, *others = self._values.tolist()
        if not all(math.isfinite(value) for value in (self.target_loss, *others)):
            raise ImageError(
                "The loss or a map is not finite in refinement step "
                f"{self._step + 1} of {self._config.iterations}; a smaller refine.lr may help."
            )
        if exploded:
            self.reason = EXPLOSION
        elif abs(self.target_loss) > self._config.stop_threshold:
            self.reason = TARGET_LOSS


def _added(sums: list[Tensor], maps: list[Tensor]) -> list[Tensor]:
    """Return the sums with a step's maps added, of which an explosion leaves the last ones out."""
    if not sums:
        return list(maps)
    return [*torch._foreach_add(sums[: len(maps)], maps), *sums[len(maps) :]]
