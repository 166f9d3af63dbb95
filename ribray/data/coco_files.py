"""Where the files of a COCO split lie, and which picture an entry's ``file_name`` means.

What is read without a word is COCO's own layout and a path below the split's folder. Whatever else can be read in
one way only (the layouts of CVAT, Roboflow and Label Studio, paths of another machine, URLs) is read so, and told.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from pathlib import Path
from posixpath import basename
from typing import NamedTuple
from urllib.parse import unquote

from ribray.data.dataset import nearest
from ribray.data.files import list_files, without_root
from ribray.data.images import is_photograph, without_ending
from ribray.data.lists import id_fault
from ribray.data.names import composed, first_of, shortened
from ribray.data.near import last_part
from ribray.errors import UsageError

YEARS = ("2014", "2017")  # what may follow a split's name; the first one that is there is taken
_ANNOTATIONS = "annotations"
_ROBOFLOW = "_annotations.coco.json"
# Where a file of annotations may lie; the first is COCO's own.
_FORMS = ("annotations/instances_{}.json", "annotations/{}.json", f"{{}}/{_ROBOFLOW}", "{}.json", "instances_{}.json")
_IMAGE_INFO = f"{_ANNOTATIONS}/image_info_{{}}.json"  # COCO's lists of images without annotations, of its test splits
_FOLDERS = ("{}", "images/{}")  # where the pictures of a split may lie; the first is COCO's own
_SHARED_FOLDERS = ("images", "data")  # where the pictures of all splits may lie
_OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "image_info_")
_NAMED = 8  # names that a sentence lists at most
_ADVICE = "write the picture's path below that folder into file_name"
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://[^/]*")
_DRIVE = re.compile(r"[A-Za-z]:/")
_WEB = ("http", "https", "file")
_LABEL_STUDIO = "/data/local-files/?d="  # before the path of a picture in a folder of its machine


class Layout(NamedTuple):
    annotations: Path | None  # None where a split without any is only to be predicted
    folder: Path
    doubt: str | None = None  # what is wrong unless the pictures are found in ``folder``
    note: str | None = None  # what to tell of where the split was found, other than in COCO's own layout


def find_layout(root: Path, split: str, labelled: bool = True) -> Layout:
    """Find annotations and pictures of a split; where it is only predicted, a list of images or a folder will do."""
    names = (split, *(f"{split}{year}" for year in YEARS))
    forms = _FORMS if labelled else (*_FORMS, _IMAGE_INFO)
    found = [(file, name) for form in forms for name in names if (file := root / form.format(name)).is_file()]
    if not found:
        if labelled or not (folders := _unlabelled(root, names)):
            raise UsageError(_no_annotations(root, split, names, labelled))
        return Layout(None, folders[0])
    (file, name), *others = found
    there = [str(other.relative_to(root)) for other, other_name in others if other_name == name]
    unread = f" ({_listed(there)} of the same name {'is' if len(there) == 1 else 'are'} not read)" if there else ""
    rivals = [other_name for _, other_name in others if other_name != name and name != split]
    if rivals:
        unread += f" (not from that of '{rivals[0]}', which is a split too)"
    folder, doubt = _folder_of(file, root, dict.fromkeys((name, name.replace("-dev", ""), split)))
    usual = [root / form.format(name) for form in (_FORMS[0], _IMAGE_INFO)]
    is_usual = file in usual and folder == root / name and name in names[:2] and not rivals
    note = f"Split '{split}' of {root} is read from {file}{unread}, and its images from {folder}."
    return Layout(file, folder, doubt, None if is_usual else note)


def _folder_of(file: Path, root: Path, names: Iterable[str]) -> tuple[Path, str | None]:
    """Return where the pictures of annotations lie, and what is wrong unless they are found there."""
    if file.name == _ROBOFLOW:
        return file.parent, None
    candidates = [*_folders(root, names), *(root / place for place in _SHARED_FOLDERS)]
    if (folder := next((candidate for candidate in candidates if candidate.is_dir()), None)) is not None:
        return folder, None
    if root.name == _ANNOTATIONS:
        return root, f"{root} holds annotations: data.root must be the folder above, which holds the images too."
    there_are = _listed(sorted(place.name for place in root.iterdir() if place.is_dir()))
    advice = f"put the images of {file.name} there (folders there are: {there_are})"
    return root, f"{candidates[0]} does not exist: {advice}."


def other_annotations(root: Path) -> list[Path]:
    files = {file for form in _FORMS for file in root.glob(form.format("*"))}
    return sorted(file for file in files if not file.name.startswith((*_OTHER_TASKS, ".")))


def _folders(root: Path, names: Iterable[str]) -> list[Path]:
    return [root / form.format(name) for name in names for form in _FOLDERS]


def _unlabelled(root: Path, names: Sequence[str]) -> list[Path]:
    lists = [file for name in names if (file := root / _IMAGE_INFO.format(name)).is_file()]
    return lists + [folder for folder in _folders(root, names) if folder.is_dir()]


def _no_annotations(root: Path, split: str, names: Sequence[str], labelled: bool) -> str:
    files = other_annotations(root)
    asked_by = (file.parent.name if file.name == _ROBOFLOW else file.stem.removeprefix("instances_") for file in files)
    splits = sorted({*asked_by})
    wanted = root / _FORMS[0].format(names[1] if split.isalpha() else split)
    there = f"splits there are: {_listed(splits)}{nearest(split, splits)}"
    if not splits:
        places = (root.parent, *sorted(place for place in root.iterdir() if place.is_dir()))
        other = next((place for place in places if any(place.glob(_FORMS[0].format("*")))), None)
        jsons = sorted(file.relative_to(root).as_posix() for form in ("*.json", "*/*.json") for file in root.glob(form))
        hint = f"did you mean data.root={other}?" if other else f"JSON files there are: {_listed(jsons)}"
        there = f"no file of annotations is known by its place in {root}: {hint}"
    if (root / _ROBOFLOW).is_file():
        there = f"{root} holds one split in Roboflow's layout: data.root is the folder above, {root.name} the split"
    if labelled and _unlabelled(root, names):
        return f"{wanted} does not exist; {there}. Without labels, '{split}' can only be predicted (evaluate.splits)."
    pictures = "" if labelled else f" No list {_IMAGE_INFO.format(split)} and no folder {split} is there either."
    return f"{wanted} does not exist; {there}.{pictures}"


def _listed(names: Sequence[str]) -> str:
    return first_of(names, _NAMED) or "none"


class Located(NamedTuple):
    paths: Sequence[str]  # below the folder, where the picture need not be; empty where no picture can be named
    faults: dict[int, str]  # why not, by place: the end of a sentence that begins with the place
    searched: list[int]  # places of names that were no path below the folder, but whose picture was found


def locate(names: Sequence[str], folder: Path) -> Located:
    """Find the picture below the folder, which is listed only if need be, that each ``file_name`` means."""
    finder, paths = _Finder(folder, names), [""] * len(names)
    faults: dict[int, str] = {}
    loose: dict[int, bool] = {}  # whether the picture is there
    for place, name in enumerate(names):
        try:
            paths[place], is_loose, is_there = finder.find(name)
            if is_loose:
                loose[place] = is_there
        except _NoPictureError as error:
            faults[place] = f"has file_name {shown(name)}, {error}"
    claims: dict[str, list[str]] = defaultdict(list)  # the names of a picture
    for name, path in zip(names, paths if loose else (), strict=False):
        claims[path].append(name)
    for place in loose:
        if other := next((name for name in claims[paths[place]] if name != names[place]), None):
            meant = f"which would be {paths[place]} in {folder}, as {shown(other)} would"
            faults[place] = f"has file_name {shown(names[place])}, {meant}: {_ADVICE}"
    searched = [place for place, is_there in loose.items() if is_there and place not in faults]
    return Located(["" if place in faults else path for place, path in enumerate(paths)], faults, searched)


def shown(name: str) -> str:
    short = shortened(name)
    return f"'{short}'" if short.isprintable() else ascii(short)


class Pictures:
    """What lies in the folder of a split; listed when first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def alike(self, path: str) -> list[str]:
        """Return the paths that are the same but for folder, ending, case and Unicode form, sorted."""
        return self._by_likeness.get(last_part(composed(unquote(path))), [])

    def nearest(self, path: str) -> str:
        """Return `` (there is y)`` for a path that is not there but for its case, ending or folder, or nothing."""
        for folder in (self._folder.parent, *self._beside):
            if (folder / path).is_file():
                return f" (there is one in {folder})"
        within = next((other for other in self.alike(path) if (self._folder / other).is_file()), None)
        return "" if within is None else f" (there is {within})"

    @cached_property
    def _by_likeness(self) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = defaultdict(list)
        for path in list_files(self._folder).names:
            groups[last_part(composed(unquote(path)))].append(path)
        return groups

    @cached_property
    def _beside(self) -> list[Path]:
        return sorted(place for place in self._folder.parent.iterdir() if place != self._folder and place.is_dir())


class _NoPictureError(Exception):
    """No picture can be named; carries the end of a sentence that begins with the name."""


class _Name(NamedTuple):
    parts: tuple[str, ...]
    is_elsewhere: bool  # begins elsewhere than in the folder: with a host, a drive, a root, or ``..``
    is_stray: bool = False  # begins in a folder that is not there

    @property
    def path(self) -> str:
        return "/".join(self.parts)

    @property
    def is_exact(self) -> bool:
        """Whether it names a picture of just this depth."""
        return not self.is_elsewhere and not self.is_stray


class _Finder:
    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder, self._names, self._pictures = folder, names, Pictures(folder)
        self._is_folder = cache(lambda place: place.is_dir())

    def find(self, text: str) -> tuple[str, bool, bool]:
        """Return a name's picture; whether the name is loose, no path below the folder; if so, whether it is there."""
        name = self._take_apart(text)
        is_loose = not name.is_exact or not is_photograph(name.path)
        if not is_loose and name.path.isascii():
            return name.path, False, False
        last, alike = composed(name.parts[-1]), self._pictures.alike(name.parts[-1])
        near = [path for path in alike if composed(basename(path)) == last]
        if not is_photograph(name.path):
            near = [path for path in alike if path in near or composed(basename(without_ending(path))) == last]
        if name.is_exact and name.path in near:
            return name.path, False, False
        likeliest = _likeliest(name, near)
        if len(likeliest) > 1:
            some = " and ".join(likeliest[:2]) + (", …" if len(likeliest) > 2 else "")
            raise _NoPictureError(f"and which picture that is in {self._folder} cannot be told ({some}): {_ADVICE}")
        if likeliest:
            return likeliest[0], is_loose, True
        return name.parts[-1] if name.is_elsewhere else name.path, is_loose, False

    def _take_apart(self, text: str) -> _Name:
        name = _parse(text)
        if not name.parts:
            raise _NoPictureError(f"which names no picture in {self._folder}: {_ADVICE}")
        if (fault := id_fault(name.path)) is not None:
            advice = f"give the picture in {self._folder} another name, there and in file_name"
            raise _NoPictureError(f"which {fault}: {advice}")
        if name.is_elsewhere or len(name.parts) == 1 or self._is_folder(self._folder / name.parts[0]):
            return name
        below = tuple(without_root(name.parts, self._folder.parts))  # of one that begins with the folder's own path
        if below != name.parts:
            return name._replace(parts=below)
        is_known = self._some_are_plain or self._is_folder(self._folder.parent / name.parts[0])  # be the file missing
        return name._replace(is_stray=not is_known)

    @cached_property
    def _some_are_plain(self) -> bool:
        """Whether a folder of some name is there: then all names are paths below this folder, be the file missing."""
        names = map(_parse, self._names)
        heads = {name.parts[0] for name in names if len(name.parts) > 1 and not name.is_elsewhere}
        return any(self._is_folder(self._folder / head) for head in heads if id_fault(head) is None)


def _parse(text: str) -> _Name:
    is_elsewhere = False
    if _LABEL_STUDIO in text:
        text, is_elsewhere = unquote(text.partition(_LABEL_STUDIO)[2]), True
    elif url := _URL.match(text):
        text, is_elsewhere = text[url.end() :], True
        if url["scheme"].lower() in _WEB:
            text = unquote(re.split(r"[?#]", text, maxsplit=1)[0])
    text = text.replace("\\", "/")
    if _DRIVE.match(text):
        text, is_elsewhere = text[2:], True
    parts = text.split("/")
    is_elsewhere |= text.startswith("/") or ".." in parts
    return _Name(tuple(part for part in parts if part not in ("", ".", "..")), is_elsewhere)


def _likeliest(name: _Name, near: Sequence[str]) -> list[str]:
    """Return the paths, of those with the same last part, that agree with a name the farthest."""
    name_parts = [composed(part) for part in name.parts]
    tails = []  # paths that the name ends with, but for an ending
    for path in near:
        parts = composed(path if is_photograph(name.path) else without_ending(path)).split("/")
        if parts == name_parts[-len(parts) :]:
            tails.append(path)
    if not tails and name.is_elsewhere:
        return list(near)
    depth = len(name.parts) - 1 if name.is_exact else max((path.count("/") for path in tails), default=0)
    return [path for path in tails if path.count("/") == depth]
