"""PASCAL VOC 2012, and any data in its layout.

ROOT/JPEGImages/ID.jpg                   or with another ending of a picture
ROOT/ImageSets/Segmentation/SPLIT.txt    or ImageSets/Main/SPLIT.txt; ribray.data.lists has the forms of its lines
ROOT/ImageSets/Main/CLASS_SPLIT.txt      ids with the sign of one class: labels where there is no other source
ROOT/Annotations/ID.xml                  image-level labels; where there is none, they come from the mask
ROOT/SegmentationClass/ID.png            truth
ROOT/SegmentationClassAug/ID.png         truth of the augmented set, for split train_aug
ROOT/classes.txt                         optional: class names in the order of the mask values 1, 2, …, one a line;
                                         otherwise VOC's 20, which CVAT's ROOT/labelmap.txt must list if it is there
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ribray.config import DataConfig
from ribray.data.dataset import Dataset, Problem
from ribray.data.files import FilesById
from ribray.data.images import IMAGE_SUFFIXES, MASK_SUFFIX, is_photograph, read_mask
from ribray.data.lists import CLASSES, MAIN, MASKS, PICTURES, IdList, check_id, lines, read_list, read_text
from ribray.data.names import NO_CLASS, composed, is_background, plain, printable, some
from ribray.data.near import Near
from ribray.data.voc_labels import ANNOTATIONS, VOC_CLASSES, VocLabels, class_lists, class_of_list, difficult_names
from ribray.errors import ImageError, UsageError

AUGMENTED_SPLIT = "train_aug"
_LABEL_MAP = "labelmap.txt"  # CVAT's: lines of name:colour:parts:actions, in the order of the mask values
_AUGMENTED_MASKS = "SegmentationClassAug"
_IMAGE_SETS = "ImageSets"
_LISTS = ("ImageSets/Segmentation", MAIN)
_OWN_FOLDERS = (PICTURES, ANNOTATIONS, MASKS, _AUGMENTED_MASKS, "SegmentationObject", _IMAGE_SETS)


class VocDataset(Dataset):
    """One split of a data root in VOC layout; images are read from disk when asked for."""

    def __init__(
        self,
        root: Path,
        split: str,
        classes: Sequence[str] = VOC_CLASSES,
        palette: np.ndarray | None = None,
        labelled: bool = True,
        notes: Iterable[str] = (),
    ) -> None:
        """Read the list, the labels (if any are needed) and which pictures there are; ``notes``: on classes."""
        self.root = root
        if not (root / PICTURES).is_dir():
            raise UsageError(f"{root} has no folder {PICTURES}: {_nearest_root(root)}")
        pictures = FilesById(root / PICTURES, IMAGE_SUFFIXES)
        listed = _read_split(root, split, classes, pictures, labelled)
        names_augmented_alone = _AUGMENTED_MASKS in listed.mask_folders and not (root / MASKS).is_dir()
        is_augmented = split == AUGMENTED_SPLIT or names_augmented_alone
        folders = (_AUGMENTED_MASKS, MASKS) if is_augmented else (MASKS,)
        self._mask_folders = [folder for folder in folders if (root / folder).is_dir()]  # of truth, the first one first
        masks = [FilesById(root / folder, (MASK_SUFFIX,)) for folder in self._mask_folders]
        annotations = FilesById(root / ANNOTATIONS, (".xml",))
        self._missing = dict(_missing_pictures(root, listed.ids, pictures))
        self._pictures = {id: _picture(id, listed, pictures) for id in listed.ids if id in pictures}
        self._annotations = {id: annotations.names(id)[0] for id in listed.ids if id in annotations}
        self._masks = [(files.folder, {id: files.names(id)[0] for id in listed.ids if id in files}) for files in masks]

        findings = [*_findings(root, listed, pictures, masks)]
        notes = [*notes, *_notes(root, listed, self._mask_folders, classes)]
        rows: list[np.ndarray | Problem] = [np.zeros(len(classes), bool)] * len(listed.ids)
        if labelled:
            order = dict.fromkeys((*self._mask_folders, _AUGMENTED_MASKS, MASKS))
            labels = VocLabels(root, split, classes, annotations, order, pictures.known, listed)
            rows = labels.find(self._missing)
            findings += labels.findings(rows)
            notes += labels.notes(rows)
        known = {id: row for id, row in zip(listed.ids, rows, strict=True) if not isinstance(row, Problem)}
        problems = [*listed.problems, *(row for row in rows if isinstance(row, Problem))]
        matrix = np.array([*known.values()])
        super().__init__(f"split '{split}' of {root}", classes, [*known], matrix, problems, palette, findings, notes)

    @property
    def has_masks(self) -> bool:
        return bool(self._mask_folders)

    def image_path(self, id: str) -> Path:
        if id in self._missing:
            raise ImageError(self._missing[id])
        return self.root / PICTURES / self._pictures.get(id, f"{id}.jpg")

    def coco_image(self, id: str) -> tuple[int, str]:
        return self.index(id) + 1, f"{id}{PurePosixPath(self._pictures.get(id, f'{id}.jpg')).suffix}"

    def hidden_classes(self, id: str) -> np.ndarray:
        names: set[str] = set()
        with contextlib.suppress(OSError):
            names = difficult_names((self.root / ANNOTATIONS / self._annotations.get(id, f"{id}.xml")).read_bytes())
        return np.array([name in names for name in self.classes], dtype=bool)

    def _read_mask(self, id: str) -> np.ndarray | None:
        files = (folder / names.get(id, f"{id}.png") for folder, names in self._masks)
        return next((read_mask(file) for file in files if file.is_file()), None)


def open_voc(data: DataConfig, split: str, root: Path, labelled: bool = True) -> VocDataset:
    """Open a split, whose classes are those of data.classes, or else of classes.txt, or else VOC's."""
    file = root / CLASSES
    own = [name for line in lines(read_text(file)) if (name := plain(line))] if file.is_file() else None
    if data.classes is None:
        if own is None:
            _require_voc_label_map(root)
        return VocDataset(root, split, VOC_CLASSES if own is None else own, labelled=labelled)
    chosen = [plain(name) for name in data.classes]
    if "" in chosen:
        raise UsageError("data.classes has a blank name: write one name for each of the mask values 1, 2, …")
    differs = own is not None and list(map(composed, own)) != list(map(composed, chosen))
    notes = [f"The classes are those of data.classes; {file} has others and is not read."] if differs else []
    return VocDataset(root, split, chosen, labelled=labelled, notes=notes)


def _require_voc_label_map(root: Path) -> None:
    """Refuse masks that count other classes than VOC's, by the file that CVAT lays beside them."""
    file = root / _LABEL_MAP
    if not file.is_file() or not any((root / folder).is_dir() for folder in (MASKS, _AUGMENTED_MASKS)):
        return
    listed = (plain(line.partition(":")[0]) for line in lines(read_text(file)) if not line.lstrip().startswith("#"))
    names = [name for name in listed if name and not is_background(name)]
    if [name for name in names if name not in NO_CLASS] != list(VOC_CLASSES):
        raise UsageError(
            f"{file} lists other classes than VOC's 20, or in another order ({some(names)}): give them as "
            f"data.classes, or one a line in {root / CLASSES}, in the order of the mask values 1, 2, …. If the masks "
            "hold VOC's own values, remove the file."
        )


def _read_split(root: Path, split: str, classes: Sequence[str], pictures: FilesById, labelled: bool) -> IdList:
    check_id(split, "The name of a split")
    for folder in _LISTS:
        file = root / folder / f"{split}.txt"
        if file.is_file():
            listed = read_list(file, pictures.known)
            if not listed.ids:
                sentence = f"split '{split}' of {root} has no image that can be used: {file} is empty"
                raise UsageError(f"{sentence}. Write the ids of its images there, one a line.")
            return listed
    if files := list(class_lists(root, split, classes).values()):
        ids = tuple(dict.fromkeys(id for file in files for id in read_list(file, pictures.known).ids))
        made = f"the split is made of {len(files)} lists of classes, from {files[0].name} on"
        return IdList(str(root / MAIN), ids, notes=[f"{root / MAIN / split}.txt does not exist: {made}."])
    existing = sorted({file.stem for file in _all_lists(root)})
    misplaced = _misplaced(root, split)
    if not existing and misplaced is None and not labelled:
        for id in pictures:
            check_id(id, f"the name of a picture in {pictures.folder}")
        ids = tuple(pictures)
        note = f"{_IMAGE_SETS} has no list: split '{split}' is all {len(ids)} pictures in {pictures.folder}."
        return IdList(str(pictures.folder), ids, notes=[note])
    missing = f"{root / _LISTS[0] / split}.txt does not exist"
    if misplaced is not None:
        raise UsageError(f"{missing}, but {misplaced} does: move or rename it.")
    if split == AUGMENTED_SPLIT:
        those = "the 10,582 ids of the augmented training set"
        raise UsageError(f"{missing}: put {those} there, one a line, and their masks in {_AUGMENTED_MASKS}/.")
    of_class = {name for name in existing if name != AUGMENTED_SPLIT and class_of_list(name, classes) is not None}
    of_splits = [name for name in existing if name not in of_class] or existing
    raise UsageError(f"{missing}{Near(existing).hint(split)}; lists there are: {', '.join(of_splits) or 'none'}.")


def _all_lists(root: Path) -> Iterator[Path]:
    return (file for folder in _LISTS for file in (root / folder).glob("*.txt"))


def _misplaced(root: Path, split: str) -> Path | None:
    def bare(name: str) -> str:
        return name.casefold().replace("_", "").replace("-", "")

    roots = [root, *(folder for folder in root.iterdir() if folder.name.casefold() == _IMAGE_SETS.casefold())]
    folders = [*roots, *(inner for folder in roots[1:] if folder.is_dir() for inner in folder.iterdir())]
    for folder in folders:
        for file in folder.iterdir() if folder.is_dir() else ():
            is_split = folder in [root / place for place in _LISTS] and file.suffix == ".txt"
            is_meant = bare(file.name) in (bare(f"{split}.txt"), bare(split))
            if is_meant and file.is_file() and not (is_split and split != AUGMENTED_SPLIT):
                return file
    return None


def _notes(root: Path, listed: IdList, truth: Sequence[str], classes: Sequence[str]) -> Iterator[str]:
    absent = [name for name in (ANNOTATIONS, MASKS, _AUGMENTED_MASKS) if not (root / name).is_dir()]
    for entry in root.iterdir() if absent else ():
        if names := [name for name in absent if name.casefold() == entry.name.casefold()]:
            yield f"{entry} is not read: VOC's layout has {names[0]} in its place."
    yield from listed.notes
    if listed.signs:
        column = class_of_list(Path(listed.source).stem, classes)
        meaning = "but its name begins with that of no class, so the sign is passed over"
        if column is not None:
            meaning = f"a label of '{classes[column]}' (1 and 0: in the image, -1: not)"
        yield f"{listed.source} has a sign on its lines, {meaning}; all its {len(listed.ids)} images are used."
    here = [part for part in str(root).replace("\\", "/").split("/") if part]
    for other in listed.roots:
        parts = [part for part in other.split("/") if part not in ("", ".", "..")]
        if parts and here[-len(parts) :] != parts:
            read = f"those of the same names in {root / PICTURES} are read"
            yield f"{listed.source} names pictures in {other}/{PICTURES}: {read}."
            break
    for folder in listed.mask_folders:
        if truth and folder not in truth:
            yield f"{listed.source} names masks in {folder}: truth is read from {' and '.join(truth)}, for this split."


def _nearest_root(root: Path) -> str:
    for above in (root.parent, root.parent.parent):
        if (above / PICTURES).is_dir():
            return f"did you mean data.root={above}?"
    folders = sorted((entry for entry in root.iterdir() if entry.is_dir()), key=lambda entry: entry.name)
    for folder in folders:
        if folder.name.casefold() == PICTURES.casefold():
            return f"it has {folder.name}, which must be spelt {PICTURES}."
    deeper = [inner for folder in folders for inner in (folder, folder / "VOC2012", folder / "VOCdevkit/VOC2012")]
    if inner := [str(place) for place in deeper if (place / PICTURES).is_dir()]:
        return f"did you mean data.root={' or '.join(inner)}?"
    for folder in (root, *(folder for folder in folders if folder.name not in _OWN_FOLDERS)):
        if any(is_photograph(entry.name) for entry in folder.iterdir()):
            where = "itself" if folder == root else f"in its folder {folder.name}"
            return f"it has pictures {where}: put them into {PICTURES}, or use data.kind=folder."
    return "data.root must be the folder that holds it."


def _picture(id: str, listed: IdList, pictures: FilesById) -> str:
    """Return the picture of an id: the one that its list names, or else the first one."""
    names = pictures.names(id)
    return listed.files[id] if listed.files.get(id) in names else names[0]


def _missing_pictures(root: Path, ids: Iterable[str], pictures: FilesById) -> Iterator[tuple[str, str]]:
    """Yield ids without a picture, each with a sentence that names the nearest thing there is."""
    if not (missing := [id for id in ids if id not in pictures]):
        return
    elsewhere: dict[str, str] = {}  # by what would be the ids
    own = [entry for entry in root.iterdir() if entry.name not in _OWN_FOLDERS and not entry.name.startswith(".")]
    for entry in (*own, *(inner for folder in own if folder.is_dir() for inner in folder.iterdir())):
        if is_photograph(entry.name):
            elsewhere.setdefault(composed(PurePosixPath(entry.name).stem), f"{entry}: put it into {PICTURES}")
    for name in pictures.others:
        elsewhere[_without_suffix(name)] = f"{PICTURES}/{name}, but only {', '.join(IMAGE_SUFFIXES)} are read"
    for id in missing:
        sentence = f"{pictures.folder}/{id}.jpg does not exist, nor a picture {id} with another ending"
        if id.startswith("#"):
            sentence += "; if that line of the list is a comment, take it out"
        found = elsewhere.get(composed(id))
        yield id, f"{sentence}{pictures.near.hint(id)}." if found is None else f"{sentence}; there is {found}."


def _without_suffix(name: str) -> str:
    return composed(str(PurePosixPath(name).with_suffix("")))


def _findings(root: Path, listed: IdList, pictures: FilesById, masks: Sequence[FilesById]) -> Iterator[Problem]:
    for id in listed.ids:
        names = pictures.names(id)
        if len(names) > 1:
            keep = f"{_picture(id, listed, pictures)} is used; keep one of them"
            yield Problem(id, f"{pictures.folder} has {' and '.join(names)} for {id}: {keep}.", "two pictures")
    ids = set(map(composed, listed.ids))
    for files in masks:
        left = {id for id in files if id not in pictures} - ids
        for file in _all_lists(root) if left else ():  # of images that any list has, the picture is what is missing
            with contextlib.suppress(UsageError):
                left.difference_update(map(composed, read_list(file).ids))
        for id in sorted(left):
            name = files.names(id)[0]
            sentence = f"{printable(str(files.folder / name))} belongs to no picture in {PICTURES}"
            label = printable(f"{files.folder.name}/{name}")
            yield Problem(label, f"{sentence}{pictures.near.hint(id)}.", "mask of no image")
    for files in masks:
        for name in files.others:
            id = _without_suffix(name)
            if id in ids and id not in files and is_photograph(name):
                sentence = f"{files.folder / name} is not read: a mask is a PNG, {id}.png."
                yield Problem(f"{files.folder.name}/{name}", sentence, "mask ending")
