"""Which image an id, or the file of a mask, means as people write it, and why there may be none."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path

from ribray import storage
from ribray.data.dataset import Problem
from ribray.data.files import Listing, is_passed_over, without_root
from ribray.data.images import IMAGE_SUFFIXES, MASK_SUFFIX, is_photograph, without_ending
from ribray.data.lists import check_id
from ribray.data.names import LIKE_MASKS, composed
from ribray.data.near import Near, difference, last_part
from ribray.errors import UsageError

_JPEG = (".jpg", ".jpeg")
# Endings of files that may be somebody's masks, but are not read; compared in lower case
_OTHER_FORMATS = tuple({*IMAGE_SUFFIXES, ".npy", ".npz", ".mat", ".json", ".xml", ".svg"} - {MASK_SUFFIX})
_MASK_BESIDE = re.compile(rf"(.+?)[ _-](?:{'|'.join({*LIKE_MASKS, 'seg'})})(?:[ _-]?[0-9]+)?", re.IGNORECASE)


class Photographs:
    """The photographs below a root by id: the path below it without ending, in Unicode's composed form."""

    def __init__(self, root: Path, names: Iterable[str], listing: Listing) -> None:
        self.files: dict[str, str] = {}  # path as the file system has it, by id, sorted by path
        for name in names:
            id = composed(without_ending(name))
            check_id(id, f"the name of an image below {root}")
            if (other := self.files.setdefault(id, name)) != name:
                why, both = "rename one of the two", f"{root / other} and {root / name} have the same id {id}"
                if without_ending(other) != without_ending(name):
                    forms = "Unicode form only, an accent being part of its letter or standing behind it"
                    why = f"their names differ in {forms}; remove or {why}"
                raise UsageError(f"{both}: {why}.")
        self._folders = {composed(name.split("/")[0]) for name in (*listing.names, *listing.same) if "/" in name}
        self._same = {composed(name): composed(other) for name, other in listing.same.items()}
        real = [os.path.realpath(root)] if storage.is_local(root) else []
        self._roots = [composed(text.rstrip("/")) + "/" for text in dict.fromkeys([str(root), *real])]
        self._root_parts = [composed(part) for part in root.parts]

    def id_of(self, written: str, where: str) -> str:
        r"""Return the id that is meant by one as somebody has written it, whether there is such an image or not.

        ``img01.jpg``, ``./img01``, ``photos\img01.jpg`` and ``/data/photos/img01`` all mean ``img01`` where the root is
        ``/data/photos`` and nothing else has that name. What could name anything but a file below the root is refused;
        ``where`` is for that message, such as ``line 3 of train.txt``.
        """
        id = composed(written)
        if id in self.files:
            return id
        text = id  # without the root in front of it, then with the separators of ids and without ``.``
        for root in self._roots:
            text = text.removeprefix(root)
        path = "/".join(part for part in text.replace("\\", "/").split("/") if part != ".") or text
        try:
            check_id(path, where)
        except UsageError as error:
            if (near := self._by_last_part.get(last_part(path))) is None:
                raise
            raise UsageError(f"{str(error).rstrip('.')}; there is {near}.") from None
        parts = path.split("/")
        for count in range(len(parts) - 1, 0, -1):  # by the name below which files of its folder are listed
            if (listed := self._same.get("/".join(parts[:count]))) is not None:
                path = "/".join([*filter(None, [listed]), *parts[count:]])
                break
        inner = "/".join(without_root(path.split("/"), self._root_parts))
        for candidate in (path, inner):
            if candidate in self.files:
                return candidate
            stem = without_ending(candidate)
            if stem in self.files and composed(self.files[stem]).lower() == candidate.lower():  # its ending in any case
                return stem
        likely = path if path.split("/")[0] in self._folders else inner
        return likely if without_ending(likely) in self.files else without_ending(likely)

    @cached_property
    def _by_last_part(self) -> dict[str, str]:
        """Ids by their last part, where one alone has it."""
        counts = Counter(map(last_part, self.files))
        return {part: id for id in self.files if counts[part := last_part(id)] == 1}


def masks_beside(ids: Collection[str]) -> dict[str, str]:
    """Return ids that are another's but for a word such as ``_mask`` or ``-gt_1`` behind it, each with that other."""
    matches = ((id, _MASK_BESIDE.fullmatch(id)) for id in ids)
    return {id: match[1] for id, match in matches if match and match[1] in ids}


class Absences:
    """Says why images are not found, or what comes nearest to them; ``unlisted`` are photographs that nothing names."""

    def __init__(self, root: Path, photographs: Photographs, unlisted: Iterable[str], listing: Listing) -> None:
        self._root, self._files, self._listing = root, photographs.files, listing
        self._nearest = Near(photographs.files, unlisted)
        self._others = {composed(name.rpartition(".")[0]): name for name in listing.names if not is_photograph(name)}

    def of(self, id: str) -> str:
        for folder in ("/".join(id.split("/")[:count]) for count in range(1, id.count("/") + 1)):
            if (target := self._listing.broken.get(folder)) is not None:
                return f": {self._root / folder} is a link that leads nowhere (to {target})"
            if (reason := self._listing.closed.get(folder)) is not None:
                return f": {self._root / folder} cannot be listed ({reason})"
        if any(map(is_passed_over, id.split("/"))):
            files = (self._root / f"{id}{suffix}" for suffix in ("", *IMAGE_SUFFIXES))
            if (file := next((file for file in files if file.is_file()), None)) is not None:
                return f": {file} is passed over, as hidden files and folders of the system are; rename it"
        if (name := self._others.get(id)) is not None:
            return f"; there is {self._root / name}, which has another ending"
        if (other := self._nearest.find(id)) is not None:
            return f"; there is {self._root / self._files[other]}{difference(id, other)}"
        return ""


class MaskFiles:
    """The masks in a folder, and findings: files that belong to no image or are no PNG, and second masks."""

    def __init__(self, folder: Path, names: Sequence[str], photographs: Photographs, ids: Collection[str]) -> None:
        self._folder, self._photographs, self._ids = folder, photographs, ids
        self.files: dict[str, str] = {}  # path below the folder, by id
        self.findings: list[Problem] = []
        self._note_strays(self._take([name for name in names if name.lower().endswith(MASK_SUFFIX)]))
        for name in (name for name in names if name.lower().endswith(_OTHER_FORMATS)):
            stem = name.rpartition(".")[0]
            id = self._id(stem)
            if id not in self.files:  # else there is a PNG beside it
                is_jpeg = name.lower().endswith(_JPEG)
                reason = "is a JPEG, which cannot hold class numbers" if is_jpeg else "is no PNG, so it is not read"
                sentence = f"{folder / name} {reason}: write it as {id if id in ids else stem}{MASK_SUFFIX}."
                self.findings.append(Problem(name, sentence, "mask format"))

    def _take(self, names: Sequence[str]) -> list[str]:
        """Take the images' masks; return the files that belong to no image."""
        found, strays = dict[str, list[str]](), list[str]()
        for name in names:
            id = self._id(name[: -len(MASK_SUFFIX)])
            (found.setdefault(id, []) if id in self._ids else strays).append(name)
        for id, files in found.items():
            own = f"{id}{MASK_SUFFIX}"
            kept = self.files[id] = own if own in files else min(files)
            if len(files) > 1:
                paths = " and ".join(str(self._folder / name) for name in files)
                both, others = ("both", "one of the two") if len(files) == 2 else ("all", "the others")
                sentence = f"{paths} are {both} the mask of {id}: {kept} is read, remove {others}."
                self.findings.append(Problem(id, sentence, "two masks"))
        return strays

    def _id(self, written: str) -> str:
        try:
            return self._photographs.id_of(written, "")
        except UsageError:
            return ""

    def _note_strays(self, strays: list[str]) -> None:
        without_mask = [id for id in self._ids if id not in self.files] if strays else []
        stems = {name: name[: -len(MASK_SUFFIX)] for name in strays}
        owners = {name: self._owner_but_for_affix(stem) for name, stem in stems.items()}
        counts = Counter(affix for _, affix in filter(None, owners.values()))
        nearest = Near(self._ids, without_mask)
        for name, stem in stems.items():
            sentence = f"{self._folder / name} belongs to no image"
            if found := owners[name]:
                id, affix = found
                files, images = counts[affix], len(without_mask)
                whose = "all" if files == images else f"{files} of"
                after = f", after {whose} {images} images without a mask" if files <= images else ""
                fit = f" (so with the {files} files '{affix}{MASK_SUFFIX}'{after})"
                right = f"rename it to {id}{MASK_SUFFIX}{fit if files > 1 else ''}"
                sentence += f": {id} has {self.files[id]}" if id in self.files else f": {right}"
            elif other := nearest.find(stem):
                sentence += f": the nearest is {other}{difference(stem, other)}"
            self.findings.append(Problem(name, f"{sentence}.", "mask of no image"))

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
