"""What holds before anything runs: the floors, the core's few imports, the front door's size."""

import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pathline

ROOT = Path(__file__).parents[1]
CORE = "torch", "numpy", "safetensors", "typer", "rich", "PIL"


def imported_by(*names: str) -> set[str]:
    """Top-level names in sys.modules of a fresh interpreter that imported `names`."""
    program = f"import sys, {', '.join(names)}; print(*{{m.split('.')[0] for m in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def requirements(*, of_extras: bool) -> set[str]:
    """Distributions that pathline asks for: the core's, or those of its extras."""
    asked = [Requirement(line) for line in requires("pathline") or []]
    named = {canonicalize_name(r.name) for r in asked if ("extra" in str(r.marker)) == of_extras}
    return named - {"pathline"}


def test_importing_pathline_imports_no_extra():
    """Beyond what the core's own dependencies bring (torch takes tqdm if it is there)."""
    extras = requirements(of_extras=True) - requirements(of_extras=False)
    optional = {
        module
        for module, distributions in packages_distributions().items()
        if extras & {canonicalize_name(name) for name in distributions}
    }
    assert optional, "no extra is installed, so this test would prove nothing"
    assert imported_by("pathline") - imported_by(*CORE) & optional == set()


def test_core_dependencies_are_the_six_of_the_design():
    assert requirements(of_extras=False) == {canonicalize_name(n) for n in CORE} - {"pil"} | {
        "pillow"
    }


def test_constraints_pin_exact_versions_and_name_no_place():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all([s.operator for s in pin.specifier] == ["=="] and not pin.url for pin in pins)
    names = [canonicalize_name(pin.name) for pin in pins]
    assert len(names) == len(set(names))
    assert requirements(of_extras=False) | requirements(of_extras=True) <= set(names)
    assert not {"torchvision", "torchaudio"} & set(names)


def test_floors_hold():
    cli = pytest.importorskip("importlinter.cli")
    assert cli.lint_imports(config_filename=str(ROOT / "pyproject.toml")) == 0


def test_front_door_has_at_most_forty_names_and_all_open():
    assert len(pathline.__all__) == len(set(pathline.__all__)) <= 40
    for name in pathline.__all__:
        assert getattr(pathline, name) is not None


def test_package_says_that_it_is_typed():
    assert (ROOT / "src/pathline/py.typed").is_file()
