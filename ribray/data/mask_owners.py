"""Which image each file of a folder of masks belongs to, by its name."""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from ribray.data.dataset import Problem
from ribray.data.ids import Photographs
from ribray.data.images import IMAGE_SUFFIXES
from ribray.data.near import Near, difference
from ribray.errors import UsageError

SUFFIX = ".png"
OF_NO_IMAGE, FORMAT, TWO = "mask of no image", "mask format", "two masks"
"""Kinds of findings."""

_JPEG = (".jpg", ".jpeg")
# Endings of files that may be somebody's masks, but are not read; compared in lower case
_OTHER_FORMATS = tuple({*IMAGE_SUFFIXES, ".npy", ".npz", ".mat", ".json", ".xml", ".svg"} - {SUFFIX})


class MaskFiles:
    """The masks in a folder.

    Attributes:
        files: path below the folder, by id.
        findings: files that belong to no image or are no PNG, and second masks of one image.
    """

    def __init__(self, folder: Path, names: Iterable[str], photographs: Photographs, ids: Collection[str]) -> None:
        """Find the owner of each file, of which ``names`` are the sorted paths below the folder, among all ``ids``."""
        self._folder, self._photographs, self._ids = folder, photographs, ids
        self.files: dict[str, str] = {}
        self.findings: list[Problem] = []
        names = list(names)
        self._note_strays([name for name in names if name.lower().endswith(SUFFIX) and not self._take(name)])
        self._note_formats(name for name in names if name.lower().endswith(_OTHER_FORMATS))

    def _take(self, name: str) -> bool:
        """Keep a mask if it belongs to an image."""
        id = self._id(name[: -len(SUFFIX)])
        if id not in self._ids:
            return False
        other = self.files.setdefault(id, name)
        if other != name:
            kept = min(other, name, key=lambda one: (one != f"{id}{SUFFIX}", one))
            self.files[id] = kept
            files = f"{self._folder / other} and {self._folder / name}"
            sentence = f"{files} are both the mask of {id}: {kept} is read, remove one of the two."
            self.findings.append(Problem(id, sentence, TWO))
        return True

    def _id(self, written: str) -> str:
        try:
            return self._photographs.id_of(written, "")
        except UsageError:
            return ""

    def _note_strays(self, strays: list[str]) -> None:
        """Say of each file that belongs to no image what comes nearest."""
        without_mask = [id for id in self._ids if id not in self.files] if strays else []
        stems = {name: name[: -len(SUFFIX)] for name in strays}
        owners = {name: self._owner_but_for_affix(stem) for name, stem in stems.items()}
        counts = Counter(affix for _, affix in filter(None, owners.values()))
        nearest = Near(self._ids, without_mask)
        for name, stem in stems.items():
            sentence = f"{self._folder / name} belongs to no image"
            if found := owners[name]:
                id, affix = found
                right = f"rename it to {id}{SUFFIX}{_fit(affix, counts[affix], len(without_mask))}"
                sentence += f": {id} has {self.files[id]}" if id in self.files else f": {right}"
            elif other := nearest.find(stem):
                sentence += f": the nearest is {other}{difference(stem, other)}"
            self.findings.append(Problem(name, f"{sentence}.", OF_NO_IMAGE))

    def _owner_but_for_affix(self, stem: str) -> tuple[str, str] | None:
        """Return the image whose id has another word before or behind it in a file's name, and that word."""
        folder, slash, name = stem.rpartition("/")
        gaps = [match.start() for match in re.finditer(r"[^0-9A-Za-z]", name)]
        behind = ((name[:gap], f"*{name[gap:]}") for gap in reversed(gaps))
        before = ((name[gap + 1 :], f"{name[: gap + 1]}*") for gap in gaps)
        for inner, affix in (*behind, *before):
            if (id := self._id(f"{folder}{slash}{inner}")) in self._ids:
                return id, affix
        return None

    def _note_formats(self, names: Iterable[str]) -> None:
        """Say of each file in another format what would be read, but where there is a PNG beside it."""
        for name in names:
            stem = name.rpartition(".")[0]
            id = self._id(stem)
            if id in self.files:
                continue
            is_jpeg = name.lower().endswith(_JPEG)
            reason = "is a JPEG, which cannot hold class numbers" if is_jpeg else "is no PNG, so it is not read"
            right = f"{id if id in self._ids else stem}{SUFFIX}"
            self.findings.append(Problem(name, f"{self._folder / name} {reason}: write it as {right}.", FORMAT))


def _fit(affix: str, files: int, images: int) -> str:
    if files < 2:
        return ""
    whose = f"all {images}" if files == images else f"{files} of {images}"
    return f" (so with the {files} files '{affix}{SUFFIX}', after {whose} images without a mask)"
