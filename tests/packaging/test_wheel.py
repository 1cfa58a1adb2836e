"""What the wheel holds, and what its metadata say."""

import re
from email import message_from_bytes
from email.message import Message
from zipfile import ZipFile

import pytest

from tests.packaging.installing import ROOT, copy_checkout, pip
from volseg import __version__

SOURCE = "https://github.com/volseg/volseg"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    checkout = copy_checkout(folder / "checkout")
    done = pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, checkout)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    assert path.name == f"volseg-{__version__}-py3-none-any.whl"
    return ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: ZipFile) -> Message:
    return message_from_bytes(wheel.read(f"volseg-{__version__}.dist-info/METADATA"))


def test_it_holds_the_package_and_nothing_else(wheel: ZipFile) -> None:
    names = set(wheel.namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "volseg").rglob("*.py")}
    data = {"volseg/py.typed", "volseg/models/hippocampus.safetensors", "volseg/models/LICENSE-hippocampus.txt"}
    assert {name for name in names if name.startswith("volseg/")} == modules | data
    assert {name.split("/")[0] for name in names} == {"volseg", f"volseg-{__version__}.dist-info"}


def test_it_holds_the_bundled_model_as_it_is(wheel: ZipFile) -> None:
    name = "volseg/models/hippocampus.safetensors"
    assert wheel.read(name) == (ROOT / name).read_bytes()


def test_both_licences_are_declared_and_enclosed(wheel: ZipFile, metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0 AND CC-BY-SA-4.0"
    assert set(metadata.get_all("License-File")) == {"LICENSE", "volseg/models/LICENSE-hippocampus.txt"}
    folder = f"volseg-{__version__}.dist-info/licenses"
    assert b"Apache License" in wheel.read(f"{folder}/LICENSE")
    model = wheel.read(f"{folder}/volseg/models/LICENSE-hippocampus.txt").decode()
    for part in (
        "CC BY-SA 4.0",
        "https://creativecommons.org/licenses/by-sa/4.0/legalcode",
        "Medical Segmentation Decathlon",
        "Vanderbilt University Medical Center",
        "arXiv:1902.09063",
    ):
        assert part in model


def test_every_bundled_model_has_a_licence_beside_it() -> None:
    models = {path.stem for path in (ROOT / "volseg" / "models").glob("*.safetensors")}
    licences = {path.stem.removeprefix("LICENSE-") for path in (ROOT / "volseg" / "models").glob("LICENSE-*.txt")}
    assert models == licences != set()


def test_the_metadata_say_what_it_is_and_where(metadata: Message) -> None:
    assert (metadata["Name"], metadata["Version"], metadata["Requires-Python"]) == (
        "volseg",
        __version__,
        "<3.14,>=3.11",
    )
    links = dict(link.split(", ") for link in metadata.get_all("Project-URL"))
    assert set(links) == {"Homepage", "Documentation", "Source", "Issues", "Changelog"}
    assert all(link.startswith(SOURCE) for link in links.values())
    classifiers = set(metadata.get_all("Classifier"))
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)} <= classifiers
    assert {"Typing :: Typed", "Intended Audience :: Healthcare Industry"} <= classifiers
    assert "segmentation" in metadata["Keywords"].split(",")
    assert set(metadata.get_all("Provides-Extra")) == {"test", "node", "dev"}


def test_installing_it_is_the_whole_tool(metadata: Message) -> None:
    required = [(re.match(r"[\w-]+", line)[0], line) for line in metadata.get_all("Requires-Dist")]
    core = {name for name, line in required if "extra ==" not in line}
    assert {"torch", "monai", "tensorboard", "matplotlib", "blosc2", "nibabel", "SimpleITK", "pydicom"} <= core
    assert {"highdicom", "contourpy"} <= core
    assert "scikit-learn" not in dict(required)
    assert {name for name, line in required if 'extra == "node"' in line} == {"pynetdicom", "dicomweb-client"}


def test_pictures_of_the_readme_are_found_from_a_package_index(metadata: Message) -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", str(metadata.get_payload()))
    assert pictures
    for picture in pictures:
        place, name = picture.split("/main/")
        assert place == SOURCE.replace("github.com", "raw.githubusercontent.com")
        assert (ROOT / name).is_file()
