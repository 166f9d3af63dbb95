"""The numbers of a run: what each stage writes into ``metrics/STAGE.json``, typed, and how to read them.

A stage writes one object: ``run.write_metrics("irn", IrnMetrics(loss=0.1, …))``. A key that is not given is not
written, so that a field is None both where its key is missing and where its value is ``null``.

To read, take ``metrics = run.read_metrics()`` and go on by attribute: ``metrics.seed.maps["rib"].miou``,
``metrics.timing["refine"].seconds``, ``metrics.variants["cam"].pseudo``. A stage without numbers is None; ``stages()``
has those with numbers by name, also those that are not known here, whose keys are attributes all the same.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict

REPLICATES = "miou_replicates"  # stands in a stage's file and not in ``metrics.json``


class Numbers(BaseModel):
    """Some of a run's numbers; the order of fields is that of the keys in the file."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(exclude_unset=True)


# --- what several stages have ------------------------------------------------------------------------------------


class Timing(Numbers):
    """What this command's part of a stage took; empty where nothing was timed."""

    seconds: float | None = None
    images: int | None = None
    images_per_second: float | None = None
    start_seconds: float | None = None  # before `seconds`: until the first worker was ready
    workers: int | None = None  # 0: the command's own process


class Curve(Numbers):
    thresholds: list[float]
    miou: list[float | None]


class _MeanIou(Numbers):
    """How well masks agree with the truth; IoUs in percent, None where the truth shows no class."""

    miou: float | None = None
    miou_interval: list[float] | None = None  # lower and upper end of the 95 % interval
    miou_replicates: list[float | None] | None = None
    """The mean IoU in every replicate of the bootstrap: for intervals of what is gained."""


class MaskJudgement(_MeanIou):
    """Of masks, which may leave pixels unknown."""

    per_class: dict[str, float | None] = {}  # background first; unknown pixels are read as background
    unknown: float | None = None  # percent of the pixels
    miou_known: float | None = None  # mean IoU of the pixels that are not unknown
    images: int | None = None
    failed: int | None = None


class StepScore(Numbers):
    """The seed's mean IoU after one step of refinement, at its own best threshold."""

    step: int
    miou: float
    threshold: float


class SeedJudgement(_MeanIou):
    """Of scores cut at their best threshold."""

    threshold: float | None = None
    per_class: dict[str, float | None] = {}
    curve: Curve | None = None
    images: int | None = None
    failed: int | None = None
    refinement_ended: dict[str, int] | None = None  # images by the reason for which their refinement ended
    by_step: list[StepScore] | None = None


Judgement = MaskJudgement | SeedJudgement


# --- what each stage has -----------------------------------------------------------------------------------------


class StageMetrics(Numbers):
    timing: Timing | None = None  # in a stage's own file; of a run see `RunMetrics.timing`

    def to_json(self) -> dict[str, Any]:
        """Return what was given, as plain values, the timing last."""
        values = super().to_json()
        timing = {"timing": values.pop("timing")} if "timing" in values else {}
        return values | timing

    @property
    def counted(self) -> Any:
        """The part that holds how many ``images`` were done and ``failed``."""
        return self


class _OfImages(StageMetrics):
    images: int | None = None
    failed: int | None = None


class ClassifierMetrics(StageMetrics):
    """Of a training, or of a checkpoint that was taken over."""

    checkpoint: str | None = None
    loss: float | None = None
    validation_loss: float | None = None
    map: float | None = None  # mean average precision on the held-out images, in percent
    epochs: int | None = None
    precision: str | None = None  # arithmetic of the training
    images: int | None = None
    validation_images: int | None = None
    left_out: int | None = None  # images that could not be read
    classes: list[str] | None = None


class RefineMetrics(_OfImages):
    """Of a refinement, or of maps that were imported."""

    precision: str | None = None
    stop_reasons: dict[str, int] | None = None  # images by the reason for which their refinement ended
    mean_steps: float | None = None
    imported: str | None = None  # folder that the maps were imported from


class SeedMetrics(StageMetrics):
    """By the name of the maps that the seed is cut from, which is an attribute's name, too."""

    __pydantic_extra__: dict[str, SeedJudgement]

    @property
    def maps(self) -> dict[str, SeedJudgement]:
        """By the name of the maps: the plain ones first, the others in the order in which they stand there."""
        return dict(sorted(self.__pydantic_extra__.items(), key=lambda item: item[0] != "cam"))

    @property
    def counted(self) -> Any:
        return next(reversed(self.maps.values()), None)


class ConfidentMetrics(_OfImages):
    crf: str | None = None
    seed_crf: MaskJudgement | None = None


class IrnMetrics(StageMetrics):
    loss: float
    displacement_mean: list[float] | None = None
    iterations: int | None = None
    precision: str | None = None  # arithmetic of the training
    images: int | None = None
    failed: int | None = None


class PseudoMetrics(MaskJudgement, _OfImages):
    """Of the pseudo masks; a judgement only where there is a truth."""

    walk: SeedJudgement | None = None  # the walk's scores, before the CRF, at the best threshold


class SegmentationMetrics(StageMetrics):
    first_loss: float | None = None  # with re-training: of the first network
    loss: float
    iterations: int | None = None
    precision: str | None = None  # arithmetic of the training
    retrain: bool | None = None
    images: int | None = None
    failed: int | None = None
    classes: list[str] | None = None
    colours: list[str] | None = None  # ``#rrggbb``, background first


class EvaluateMetrics(StageMetrics, MaskJudgement):
    """Of the last network's masks of held-out images; a judgement only where there is a truth."""

    before_retraining: MaskJudgement | None = None  # with re-training: of the first network's masks
    crf: str | None = None


# --- a run -------------------------------------------------------------------------------------------------------


class RunMetrics(Numbers):
    __pydantic_extra__: dict[str, StageMetrics]  # of stages that are not known here

    classifier: ClassifierMetrics | None = None
    refine: RefineMetrics | None = None
    seed: SeedMetrics | None = None
    confident: ConfidentMetrics | None = None
    irn: IrnMetrics | None = None
    pseudo: PseudoMetrics | None = None
    segmentation: SegmentationMetrics | None = None
    evaluate: EvaluateMetrics | None = None
    variants: dict[str, "RunMetrics"] = {}
    timing: dict[str, Timing] = {}  # by stage; empty where nothing was timed

    @property
    def seeds(self) -> dict[str, SeedJudgement]:
        return self.seed.maps if self.seed else {}

    @property
    def refinements(self) -> dict[str, RefineMetrics]:
        """Return the numbers of stage `refine` by the method; all but RIB's are of a stage of their own."""
        prefix = "refine_"
        others = {name.removeprefix(prefix): part for name, part in self.stages().items() if name.startswith(prefix)}
        found = {"rib": self.refine} if self.refine is not None else {}
        return found | {name: RefineMetrics.model_validate(part.to_json()) for name, part in others.items()}

    def stages(self) -> dict[str, StageMetrics]:
        return {name: part for name, part in self if isinstance(part, StageMetrics)}
