"""Pages of a run and of a sweep with everything on them, and with markup in every text that comes from data."""

import io
from dataclasses import replace

import numpy as np
from PIL import Image

from ribray.evaluation.published import MEAN, table
from ribray.report.charts import RefinementLosses
from ribray.report.html import Refinement, RunPage, SweepPage
from ribray.report.pictures import GROWTH, GalleryBlock, GalleryImage, Strip
from ribray.runs.metrics import RunMetrics
from ribray.stages import STAGES

SCRIPT = "<script>alert(1)</script>"
MARKUP = '"><img src=x onerror="alert(1)"><b>bold</b> & more'
CLASSES = ("background", SCRIPT, "a class with quite a long name, longer than a telephone is wide", "dog", "cat")
STOPS = {"finished": 600, "target_loss": 63, "explosion": 800}


def judged(miou, **more):
    per_class = {name: miou + 3 * place for place, name in enumerate(CLASSES)} | {"dog": None}
    interval = [miou - 1.25, miou + 1.5]
    return {"miou": miou, "miou_interval": interval, "per_class": per_class, "images": 1464, "failed": 1, **more}


def seed_numbers(miou, threshold, **more):
    thresholds = np.linspace(0.02, 0.49, 20)
    curve = {"thresholds": thresholds.tolist(), "miou": (miou - 90 * (thresholds - threshold) ** 2).tolist()}
    return judged(miou, threshold=threshold, curve=curve, **more)


def timing(images, seconds, workers=2):
    return {"seconds": seconds, "images": images, "images_per_second": images / seconds, "workers": workers}


def chain(miou):
    return {
        "confident": {"images": 1464, "failed": 0, "seed_crf": judged(miou, unknown=3.0)},
        "irn": {"loss": 1.0, "iterations": 300, "images": 1464, "failed": 0},
        "pseudo": judged(miou + 8, unknown=11.0, walk=judged(miou + 4, threshold=0.4)),
        "segmentation": {"loss": 0.5, "iterations": 250, "images": 1464, "failed": 0},
        "evaluate": judged(miou + 6, crf="none", before_retraining=judged(miou + 5)),
        "timing": {name: timing(1464, 40.0) for name in ("confident", "irn", "pseudo", "segmentation", "evaluate")},
    }


def metrics():
    """A run's merged metrics with everything in them."""
    own = chain(70.0)
    by_step = [{"step": step, "miou": 36 + 20 * (1 - 0.6 ** (step - 1)), "threshold": 0.2} for step in range(1, 11)]
    first = {name: timing(1464, 900.0) for name in ("classifier", "refine", "seed")}
    return {
        **own,
        "classifier": {"map": 91.6, "loss": 0.2, "images": 1464, "failed": 0},
        "refine": {"images": 1464, "failed": 1, "precision": "float32", "stop_reasons": STOPS, "mean_steps": 7.5},
        "seed": {"cam": seed_numbers(36.0, 0.1), "rib": seed_numbers(56.0, 0.3, by_step=by_step)},
        "timing": {**first, **own["timing"]},
        "variants": {"cam": chain(45.0)},
    }


def log(steps, start, end, validation=False):
    """Lines of a training log."""
    lines = [
        {"epoch": 0, "step": step, "loss": start * (end / start) ** (step / steps), "lr": 0.1} for step in range(steps)
    ]
    return [*lines, {"epoch": 0, "step": steps - 1, "validation": {"loss": end} if validation else {}}]


def picture(seed, size=(60, 80)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def gallery():
    tiles = {caption: picture(place) for place, caption in enumerate(("image", "truth", "seed, RIB", MARKUP))}
    growth = {f"step {step}": picture(step) for step in range(1, 11)}
    refined = GalleryImage(MARKUP, CLASSES[1:3], tiles, [Strip(GROWTH, growth, "stopped after step 3")])
    held_out = GalleryImage("val_1", (), tiles)
    legend = {SCRIPT: np.array([200, 10, 10], np.uint8), "unknown": np.array([200, 200, 200], np.uint8)}
    return [GalleryBlock("Training images", [refined] * 2, legend), GalleryBlock("Held out", [held_out] * 3, legend)]


def refinement(**changes):
    """How RIB has refined the images."""
    steps = np.arange(1, 10)[:, None] * np.array([[-12.0, -10.0, -8.0]])
    losses = RefinementLosses({"losses": steps, "target_losses": -steps}, 200)
    return replace(Refinement("rib", "rib", "refine", 10, f"small, {MARKUP}", losses, 50.0), **changes)


def run_page(**changes):
    """The page of a run that has done everything."""
    page = RunPage(
        name=f"run {MARKUP}",
        directory=f"/runs/{MARKUP}",
        summary=f"recipe {MARKUP}",
        written="2026-01-02 03:04",
        metrics=RunMetrics(**metrics()),
        own="rib",
        splits=("val",),
        stages=STAGES,
        data="the drawn world",
        batch_size=20,
        logs={
            "Classifier": {"training": log(75, 0.8, 0.2, validation=True)},
            "IRN": {"plain CAM": log(300, 2.0, 1.2), "RIB": log(300, 2.0, 1.0)},
            "Segmentation": {"RIB": log(250, 12.0, 0.5), "RIB, re-trained": log(250, 11.0, 0.4)},
        },
        refinements=[refinement()],
        machine=f"a laptop {MARKUP}",
        reused={"classifier": MARKUP},
        failures=[
            {"id": f"image_{place}", "stage": "refine", "error": f"{'very ' * 40}broken: {MARKUP}", "tries": place}
            for place in range(3)
        ],
        gallery=gallery(),
        facts={"commit": MARKUP, "versions": "torch 2.6"},
        configuration=f"data: {{kind: {MARKUP}, root: {'/very/long/path' * 20}}}\n",
    )
    return replace(page, **changes)


def page_of_two_methods():
    """The page of a run with RIB and AdvCAM, on plain CAMs, too."""
    found = metrics()
    growth = [{"step": step, "miou": 36 + 12 * (1 - 0.9**step), "threshold": 0.2} for step in range(1, 28)]
    found["seed"]["advcam"] = seed_numbers(47.0, 0.2, by_step=growth)
    hard = np.random.default_rng(0).normal(0, 3, 400)
    for maps in found["seed"].values():
        maps["miou_replicates"] = (maps["miou"] + hard).tolist()
    found["variants"]["advcam"] = chain(60.0)
    found["refine_advcam"] = {"images": 1464, "failed": 0, "precision": "float32", "stop_reasons": {"finished": 1464}}
    found["timing"]["refine_advcam"] = timing(1464, 1200.0)
    other = refinement(method="advcam", maps="advcam", stage="refine_advcam", steps=27, stop_threshold=None)
    first, *rest = gallery()
    strips = [Strip(f"{name}: the map over the steps", first.images[0].strips[0].tiles) for name in ("AdvCAM", "RIB")]
    images = [replace(image, strips=strips) for image in first.images]
    return run_page(
        metrics=RunMetrics(**found),
        refinements=[other, refinement()],
        gallery=[replace(first, images=images), *rest],
    )


def published_page(name):
    """The page of a run on the classes of a published table: "S2" has VOC's, "S3" COCO's."""
    classes = [column for column in table(name).columns if column != MEAN]
    found, per_class = metrics(), dict(zip(classes, np.linspace(20, 90, len(classes)).tolist(), strict=True))
    for numbers in (found["seed"]["cam"], found["seed"]["rib"]):
        numbers["per_class"] = per_class
    for each in (found, found["variants"]["cam"]):
        for numbers in (each["evaluate"], each["evaluate"]["before_retraining"]):
            numbers["per_class"] = per_class
    return run_page(metrics=RunMetrics(**found))


def empty_page():
    """The page of a run that has begun and done nothing."""
    return run_page(
        metrics=RunMetrics(),
        logs={},
        refinements=[refinement(losses=None)],
        failures=[],
        gallery=[],
        reused={},
        machine=None,
        facts={},
    )


def trial(batch_size, seed, value, **changes):
    entry = {
        "id": f"batch_size={batch_size},seed={seed}",
        "directory": f"trials/batch_size={batch_size},seed={seed}",
        "settings": {"refine.batch_size": batch_size, "refine.seed": seed},
        "status": "finished",
        "value": value,
        "metrics": {"seed.rib.miou": value, "seed.rib.miou_interval": [54.0, 57.0]},
        "failed_images": 0,
        "error": None,
        "seconds": 30.0 + batch_size,
    }
    return {**entry, **changes}


def ledger(**changes):
    """The content of ``sweep.json``."""
    failed = {"status": "failed", "metrics": {}, "error": f"It failed: {MARKUP}"}
    values = {
        "format": 1,
        "name": "table_s1_batch_size",
        "title": f"Seed mIoU by B {MARKUP}",
        "base": {"recipe": "quickstart", "directory": "base"},
        "metric": "seed.rib.miou",
        "mode": "max",
        "axes": ["refine.batch_size"],
        "repeats": ["refine.seed"],
        "published": {"table": "S1", "value": None, "std": None, "text": f"As published {MARKUP}."},
        "stages": ["refine", "seed"],
        "trials": [
            *(trial(size, seed, 55 + size / 20 + seed / 5) for size in (1, 5, 20) for seed in (0, 1)),
            trial(30, 0, 56.9, failed_images=2),
            trial(30, 1, None, **failed),
        ],
    }
    return {**values, **changes}


def sweep_page(**changes):
    """The page of a sweep with every kind of trial."""
    plot = io.BytesIO()
    Image.fromarray(picture(0, (555, 960))).save(plot, "PNG")
    page = SweepPage(
        directory=f"/sweeps/{MARKUP}",
        written="2026-01-02 03:04",
        ledger=ledger(),
        plots={"The metric over what was varied": plot.getvalue()},
        failures={"batch_size=30,seed=0": [{"id": "a", "stage": "refine", "error": MARKUP, "tries": 3}]},
        facts={"command": f"ribray sweep table_s1 --out {MARKUP}", "base": "quickstart"},
        configuration=f"base: {MARKUP}\n",
    )
    return replace(page, **changes)
