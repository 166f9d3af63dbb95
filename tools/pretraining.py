"""Pretraining of the small backbone, so that its features describe bodies: the synthetic world's "ImageNet".

The backbone learns to tell the families of bodies and the kinds of heads of single creatures; a classifier of
heads starts from there. What is shipped was made by

    python -m tools.pretraining --out ribray/demo/network.safetensors

in about two and a half minutes on one CPU core. Where arithmetic rounds otherwise (another processor, library or
number of threads) other weights come out, whose seeds differ by a point or two of mIoU.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from ribray.data.transforms import keyed_rng, normalise
from ribray.demo.creatures import FAMILIES, HUES, draw_body, draw_build, draw_head, draw_landscape, finished
from ribray.demo.network import SmallBackbone
from ribray.networks.weights import drawn_with

IMAGES = 2000
EPOCHS = 12
BATCH_SIZE = 32
LR = 4e-3
WEIGHT_DECAY = 1e-3
ATTRIBUTES = FAMILIES + HUES  # one per family of body, one per kind of head
FIRST_BIAS = -2.0  # each attribute is rare

Progress = Callable[[int, int, float], None]  # (steps done, steps in all, loss)


def pretrain(
    seed: int = 0, images: int = IMAGES, epochs: int = EPOCHS, progress: Progress | None = None
) -> dict[str, Tensor]:
    """Train a small backbone from scratch to name the parts of single creatures; return its state dict, float32."""
    pixels, attributes = _single_creatures(seed, images)
    network = _network(seed)
    for module in network.modules():  # a `Backbone` by itself never learns statistics
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    generator = torch.Generator().manual_seed(seed)
    steps_per_epoch = images // BATCH_SIZE
    total = epochs * steps_per_epoch
    optimizer = torch.optim.AdamW(network.parameters(), LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=total)
    for epoch in range(epochs):
        order = torch.randperm(images, generator=generator)
        for step in range(steps_per_epoch):
            chosen = order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
            logits = network(_turned(pixels[chosen], generator))
            loss = functional.binary_cross_entropy_with_logits(logits, attributes[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(epoch * steps_per_epoch + step + 1, total, float(loss.detach()))
    return {name: tensor.detach().clone() for name, tensor in network.backbone.state_dict().items()}


class _Namer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = SmallBackbone()
        self.head = nn.Linear(self.backbone.channels[-1], ATTRIBUTES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone.trunk(self.backbone.stem(x)).mean((2, 3)))


def _network(seed: int) -> _Namer:
    with drawn_with(seed):
        network = _Namer()
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.constant_(network.head.bias, FIRST_BIAS)
    return network


def draw_single(seed: int, index: int, size: int = 112) -> tuple[np.ndarray, int | None, int | None]:
    """A picture to pretrain on, and its family of body and kind of head: one creature, or none in a tenth of them."""
    rng = keyed_rng("single creature", seed, index)
    family = None if rng.uniform() < 0.1 else int(rng.integers(FAMILIES))
    kind = None if family is None or rng.uniform() < 0.5 else int(rng.integers(HUES))
    canvas = draw_landscape(rng, size)
    if family is not None:
        creature = draw_build(rng, kind, family, rng.uniform(0.55, 1.1))
        draw_body(rng, canvas, creature, 1)
        if kind is not None:
            draw_head(rng, canvas, creature, 1)
    return finished(rng, canvas), family, kind


def _single_creatures(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Normalised pictures (count, 3, H, W) and their attributes (count, ATTRIBUTES), both float32."""
    drawn = [draw_single(seed, index) for index in range(count)]
    pixels = torch.stack([normalise(image) for image, _, _ in drawn])
    attributes = torch.zeros(count, ATTRIBUTES)
    for row, (_, family, kind) in enumerate(drawn):
        if family is not None:
            attributes[row, family] = 1
        if kind is not None:
            attributes[row, FAMILIES + kind] = 1
    return pixels, attributes


def _turned(batch: Tensor, generator: torch.Generator) -> Tensor:
    flip_x, flip_y, transpose = torch.rand(3, len(batch), 1, 1, 1, generator=generator) < 0.5
    batch = torch.where(flip_x, batch.flip(3), batch)
    batch = torch.where(flip_y, batch.flip(2), batch)
    return torch.where(transpose, batch.transpose(2, 3), batch)


def save(state: dict[str, Tensor], out: Path) -> None:
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(half, out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain the small backbone on single creatures.")
    parser.add_argument("--out", type=Path, required=True, help="where to write the weights (safetensors, half)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    start = time.perf_counter()

    def show(done: int, total: int, loss: float) -> None:
        if done % 50 == 0 or done == total:
            seconds = time.perf_counter() - start
            print(f"step {done}/{total}  loss {loss:.4f}  {seconds:.0f} s", file=sys.stderr)

    save(pretrain(options.seed, epochs=options.epochs, progress=show), options.out)


if __name__ == "__main__":
    main()
