"""Every file in configs/ opens, describes a network, and says how it is used."""

from pathlib import Path

import pytest

from volseg.config import load_config
from volseg.planning.planner import network_of_choices

FOLDER = Path(__file__).parent.parent / "configs"
FILES = sorted(path for path in FOLDER.rglob("*") if path.is_file())


def test_there_are_configurations():
    assert {"fast_cpu.yaml", "hippocampus.yaml", "ct_organ.yaml", "mr_anisotropic_2plus1d.yaml"} <= {
        path.name for path in FILES
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_configuration_describes_a_network_that_fits_its_patch(path: Path):
    network, patch_size = network_of_choices(load_config(path).plan)
    assert all(edge % divisor == 0 for edge, divisor in zip(patch_size, network.divisor, strict=True))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_first_comment_has_the_command_that_uses_the_file(path: Path):
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    commands = [line for line in comment if line.startswith("#     volseg train ")]
    assert len(commands) == 1
    assert f"--config configs/{path.relative_to(FOLDER)}" in commands[0]


def test_values_that_the_comments_promise():
    anisotropic, _ = network_of_choices(load_config(FOLDER / "mr_anisotropic_2plus1d.yaml").plan)
    assert anisotropic.block == "conv2plus1d"
    assert anisotropic.kernels[:3] == ((1, 3, 3), (1, 3, 3), (3, 3, 3))
    hippocampus, patch_size = network_of_choices(load_config(FOLDER / "hippocampus.yaml").plan)
    assert patch_size == (40, 40, 56)
    assert hippocampus.features == (16, 32, 64, 128)
