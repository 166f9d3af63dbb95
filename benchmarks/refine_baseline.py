"""RIB refinement of one image as docs/method.md, section 2, reads when it is written down as it stands.

float32, contiguous tensors, images decoded where they are needed, the whole network run for every view in every step,
GNDRP in loops over rows and classes, one loss and one backward pass of all rows in every step, torch's own SGD. It is
what the product's refinement is compared with, in time and in numbers; it sees the same weights, photographs and crops.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from clock import Clock
from torch import Tensor

from ribray.config import RIBConfig
from ribray.data.dataset import Dataset
from ribray.data.transforms import augment, keyed_rng, normalise, normalise_crops, rescaled
from ribray.methods.extras import ExtraOrder
from ribray.networks import Classifier

EPSILON = 1e-5
POWER = 0.9


class Baseline:
    """Refines images one after the other.

    Args:
        classifier: with the weights that every image starts from.
        dataset: of the images and of their extra samples.
        config: settings of the refinement; the loss is L_RIB.
        device: where to compute.
        clock: told where the time goes.
    """

    def __init__(
        self, classifier: Classifier, dataset: Dataset, config: RIBConfig, device: torch.device, clock: Clock
    ) -> None:
        self.classifier = classifier.to(device).eval()
        self.initial = {name: tensor.clone() for name, tensor in self.classifier.state_dict().items()}
        self.dataset, self.config, self.device, self.clock = dataset, config, device, clock
        self.normalisation = classifier.backbone.normalisation
        self.order = ExtraOrder(dataset.ids, dataset.labels, config.seed)

    def refine(self, id: str, on_step: Callable[[], None]) -> tuple[list[Tensor], list[float]]:
        """Refine one image.

        Args:
            id: of the image.
            on_step: called where a step begins.

        Returns:
            per scale the summed maps of the present classes (P, h, w), and the loss of every step.
        """
        config, phase = self.config, self.clock.phase
        label = torch.from_numpy(self.dataset.labels[self.dataset.index(id)]).float().to(self.device)  # (C,)
        present = torch.nonzero(label)[:, 0]
        with phase("decode"):
            image = self.dataset.image(id)
            views = []
            for scale in config.scales:
                view = normalise(rescaled(image, scale), self.normalisation)
                views.append(torch.stack([view, view.flip(-1)]).to(self.device))
        with phase("rest"):
            self.classifier.load_state_dict(self.initial)
            backbone, head = self.classifier.learnable_groups()
            optimizer = torch.optim.SGD(
                [{"params": backbone, "lr": config.lr}, {"params": head, "lr": config.lr * config.head_lr_factor}],
                momentum=config.momentum,
                weight_decay=config.weight_decay,
            )
        extras = self._extras(id, present.tolist())
        sums: list[Tensor] = []
        losses: list[float] = []
        for step in range(config.iterations):
            on_step()
            rows, exploded = [], False
            for index, view in enumerate(views):
                cam = self._cams(view)
                with phase("rest"):
                    positive = cam.detach().relu()
                    merged = (positive[0] + positive[1].flip(-1))[present]
                    if step == 0:
                        sums.append(merged)
                    else:
                        sums[index] = sums[index] + merged
                    if index == 0 and step > 0:
                        relative = merged / (merged.amax((1, 2), keepdim=True) + EPSILON)
                        covered = (relative > config.explode_threshold).any(0)
                        exploded = covered.float().mean().item() > config.explode_ratio
                if exploded:
                    return sums, losses
                if config.scales[index] in config.loss_scales:
                    with phase("forward"):
                        rows.append(self._pool(cam, label.expand(len(cam), -1)))
            logits = torch.cat(rows)  # (6, C)
            labels = label.expand(len(logits), -1)
            target_loss = (logits.detach() * labels).sum().item()

            with phase("decode"):
                drawn = [next(extras) for _ in range(config.batch_size - 1)]
                images = torch.stack([crop for crop, _ in drawn]).to(self.device)
                extra_labels = torch.stack([one for _, one in drawn]).to(self.device)
            with phase("forward"):
                extra_logits = self._pool(self._cams(images), extra_labels)
                loss = -(logits * labels).sum() - (extra_logits * extra_labels).sum()
            with phase("backward"):
                optimizer.zero_grad()
                loss.backward()
            with phase("update"):
                decay = (1 - step / config.iterations) ** POWER
                optimizer.param_groups[0]["lr"] = config.lr * decay
                optimizer.param_groups[1]["lr"] = config.lr * config.head_lr_factor * decay
                optimizer.step()
            losses.append(loss.item())
            if abs(target_loss) > config.stop_threshold:
                break
        return sums, losses

    def write(self, location: Path, sums: Sequence[Tensor]) -> None:
        with self.clock.phase("write"):
            location.parent.mkdir(parents=True, exist_ok=True)
            np.savez(location, *[maps.cpu().numpy() for maps in sums])

    def _cams(self, images: Tensor) -> Tensor:
        with self.clock.phase("stem"):
            stem = self.classifier.stem(images)
        with self.clock.phase("forward"):
            return self.classifier.cams(stem)

    def _pool(self, cams: Tensor, labels: Tensor) -> Tensor:
        """Return the logits (N, C) of ``cams`` (N, C, h, w) by GNDRP, row by row and class by class."""
        rows = []
        for cam, label in zip(cams, labels, strict=True):
            logits = []
            for index in range(len(label)):
                one = cam[index]
                if label[index]:
                    relative = one.detach() / one.detach().max()
                    one = one * (relative < self.config.pooling_threshold)
                logits.append(one.mean())
            rows.append(torch.stack(logits))
        return torch.stack(rows)

    def _extras(self, id: str, present: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield crops (3, S, S) and labels (C,) of images that share no class with the target."""
        config, turns = self.config, Counter()
        for place in self.order.draw(id, present):
            extra = self.dataset.ids[place]
            rng = keyed_rng("extra", config.seed, id, extra, turns[place])
            turns[place] += 1
            pixels, box = augment(self.dataset.image(extra), rng, config.resize_long, config.crop_size)
            crop = normalise_crops(pixels[None], [box], self.normalisation)[0]
            yield crop, torch.from_numpy(self.dataset.labels[place]).float()
