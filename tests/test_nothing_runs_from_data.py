"""Nothing that is read can run code: by the source, and by files that would."""

import ast
import io
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ribray import storage
from ribray.cluster.training import _restore
from ribray.data.voc_labels import VOC_CLASSES, parse_annotation
from ribray.errors import RibrayError
from ribray.methods.imported import read_class_maps
from ribray.methods.maps import MapRecord
from ribray.networks.weights import read_state
from ribray.yaml_text import YamlError, parse_yaml

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(file for folder in ("ribray", "entrypoints", "benchmarks") for file in (ROOT / folder).rglob("*.py"))
TEMPLATES = sorted((ROOT / "ribray" / "report" / "templates").iterdir())

UNPICKLING = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "jsonpickle"}
XML_PARSERS = {"fromstring", "fromstringlist", "parse", "iterparse", "XML", "XMLID", "XMLParser", "XMLPullParser"}
"""Of the standard library; those of defusedxml refuse what stands for more or elsewhere."""
RUNNING = {"eval", "exec", "compile", "__import__"}
REQUIRED = {  # calls that read, and the argument that each must have
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "np.lib.format.read_array": ("allow_pickle", False),
    "Environment": ("autoescape", True),
    "jinja2.Environment": ("autoescape", True),
}
FORBIDDEN = {
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all"),
    *("os.system", "os.popen", "torch.hub.load", "torch.jit.load", "torch.package.PackageImporter"),
    *("np.fromregex", "np.core.records.fromfile"),
}
LOADERS = {"Loader", "UnsafeLoader", "FullLoader", "CLoader", "CUnsafeLoader", "CFullLoader"}


def findings(tree: ast.AST) -> Iterator[str]:
    """Name what a module does that could run code from data."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for name in names:
                if name.split(".")[0] in UNPICKLING | {"lxml"}:
                    yield f"line {node.lineno}: imports {name}"
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("xml."):
                yield from (f"line {node.lineno}: imports {one.name}" for one in node.names if one.name in XML_PARSERS)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            if name in RUNNING | FORBIDDEN or re.fullmatch(
                rf"(xml\.etree\.)?ElementTree\.({'|'.join(XML_PARSERS)})", name
            ):
                yield f"line {node.lineno}: calls {name}"
            if name in REQUIRED:
                argument, value = REQUIRED[name]
                if not (isinstance(given.get(argument), ast.Constant) and given[argument].value is value):
                    yield f"line {node.lineno}: calls {name} without {argument}={value}"
            shell = given.get("shell")
            if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
                yield f"line {node.lineno}: calls {name} with a shell"
        elif isinstance(node, ast.Attribute) and node.attr in LOADERS and ast.unparse(node.value) == "yaml":
            yield f"line {node.lineno}: yaml.{node.attr}"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_module_reads_what_could_run(file):
    assert list(findings(ast.parse(file.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "from xml.etree.ElementTree import fromstring",
        "ElementTree.parse(file)",
        "import lxml.etree",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "np.load(file)",
        "np.load(file, allow_pickle=True)",
        "yaml.load(text, yaml.SafeLoader)",
        "yaml.load_all(text, Loader=yaml.UnsafeLoader)",
        "eval(text)",
        "exec(text)",
        "subprocess.run(command, shell=True)",
        "os.system(command)",
        "Environment(loader=loader)",
        "Environment(autoescape=False)",
    ],
)
def test_the_look_at_the_source_finds_what_it_should(source):
    assert len(list(findings(ast.parse(source)))) >= 1


def test_templates_escape_all_that_they_are_given():
    assert TEMPLATES
    for file in TEMPLATES:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe\b|autoescape\s+false|\bMarkup\b", text), file.name


# --- files that would run ----------------------------------------------------------------------------------------


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


@pytest.fixture
def canary(tmp_path) -> Iterator[Canary]:
    place = tmp_path / "canary"
    yield Canary(place)
    assert not place.exists()


def test_the_canary_would_sing(tmp_path):
    pickle.loads(pickle.dumps(Canary(tmp_path / "canary")))  # noqa: S301
    assert (tmp_path / "canary").exists()


def disguises(canary: Canary) -> dict[str, bytes]:
    """The same pickle as a bare file, as an array, in an npz, and in what `torch.save` writes."""
    array, archive, saved, legacy = (io.BytesIO() for _ in range(4))
    objects = np.array([canary], dtype=object)
    np.save(array, objects, allow_pickle=True)
    np.savez(archive, maps=objects, classes=np.arange(2))
    torch.save({"model": canary}, saved)
    torch.save({"model": canary}, legacy, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(bare := io.BytesIO(), "w") as packed:
        packed.writestr("maps.npy", pickle.dumps(canary))
    return {
        "pickle": pickle.dumps(canary),
        "npy": array.getvalue(),
        "npz": archive.getvalue(),
        "npz of a pickle": bare.getvalue(),
        "pth": saved.getvalue(),
        "old pth": legacy.getvalue(),
    }


@pytest.mark.parametrize("disguise", ["pickle", "npy", "npz", "npz of a pickle", "pth", "old pth"])
def test_a_pickle_in_place_of_a_file_does_not_run(disguise, canary, tmp_path):
    content = disguises(canary)[disguise]
    names = ("maps/x.npz", "x.npz", "x/cat.npy", "weights.pth", "weights.safetensors", "checkpoint.pt", "stage.json")
    for name in names:
        storage.write_bytes(tmp_path / name, content)
    for read in (
        lambda: MapRecord.read(tmp_path / "maps" / "x.npz"),
        lambda: storage.read_npz(tmp_path / "x.npz"),
        lambda: read_class_maps(tmp_path, "x"),
        lambda: read_state(tmp_path / "weights.pth"),
        lambda: read_state(tmp_path / "weights.safetensors"),
        lambda: storage.read_json(tmp_path / "stage.json"),
    ):
        with pytest.raises(RibrayError):
            read()
    (tmp_path / "x.npz").unlink()
    with pytest.raises(RibrayError):
        read_class_maps(tmp_path, "x")
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    assert _restore(tmp_path / "checkpoint.pt", "", model, optimizer, torch.device("cpu"))[0] == 0


def test_yaml_makes_no_objects(canary):
    for text in (
        f"!!python/object/apply:pathlib.Path.touch [{canary.place}]",
        f"a: !!python/object/new:os.system ['touch {canary.place}']",
        "a: !!python/name:os.system",
        "a: !!python/module:os",
    ):
        with pytest.raises(YamlError):
            parse_yaml(text)


def test_an_annotation_cannot_name_other_files(tmp_path):
    (tmp_path / "secret").write_text("secret")
    entity = f"<!DOCTYPE a [<!ENTITY x SYSTEM 'file://{tmp_path / 'secret'}'>]>"
    content = f"{entity}<annotation><object><name>&x;</name></object></annotation>".encode()
    with pytest.raises(RibrayError) as caught:
        parse_annotation(content, VOC_CLASSES, "x.xml")
    assert "'secret'" not in str(caught.value)
