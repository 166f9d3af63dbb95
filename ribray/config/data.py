"""Which data an experiment reads."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ribray.config.section import Count, Integer, Section, Seed, Share


class SyntheticConfig(Section):
    """The drawn world of ``data.kind: synthetic``."""

    image_size: Annotated[Integer, Field(ge=48, le=2048)] = 112
    """Side of the square images, in pixels."""
    classes: Annotated[Integer, Field(ge=2, le=200)] = 6
    """Kinds of head, which are the classes."""
    train_images: Count = 400
    """Images of split ``train``."""
    eval_images: Count = 200
    """Images of split ``val``."""


class DataConfig(Section):
    """Which images, which labels, and how they are split."""

    kind: Literal["voc", "coco", "folder", "synthetic"]
    """Layout of the data root."""
    root: str | None = None
    """Data root: a folder or URL; ``synthetic`` draws its world there (default: inside the run directory)."""
    train_split: str = "train"
    """Split the classifier learns from, whose images are refined and which extra samples are drawn from."""
    eval_split: str = "val"
    """Held-out split: validation of the classifier and of the segmentation network."""
    image_list: str | None = None
    """File with one image id a line: only these images of ``train_split`` are refined."""
    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Class names of data in VOC layout, in the order of the mask values 1, 2, …; default: the root's classes.txt, or
    else VOC's 20."""
    least_readable: Share = 0.5
    """Share of its images that a training must be able to read; with fewer it fails, and is made anew next time."""
    seed: Seed = 0
    """Seed of the synthetic world."""
    synthetic: SyntheticConfig = SyntheticConfig()

    @model_validator(mode="after")
    def _needs_root(self) -> "DataConfig":
        if self.root is None and self.kind != "synthetic":
            raise ValueError(f"data.root is missing: set it to the folder that holds the {self.kind} data")
        return self

    @model_validator(mode="after")
    def _names_classes_of_voc(self) -> "DataConfig":
        if self.classes is not None and self.kind != "voc":
            elsewhere = {
                "coco": "classes are the categories of its annotations",
                "folder": "classes stand in classes.txt",
                "synthetic": "data.synthetic.classes is their number",
            }
            raise ValueError(f"data.classes belongs to kind: voc; of kind: {self.kind}, {elsewhere[self.kind]}")
        return self
