"""What setup.cfg says about releases is what `make oldest` and `make test` install."""

from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def requirements_in(lines: str) -> list[Requirement]:
    """One requirement a line; empty lines and comments are none."""
    stripped = (line.split("#")[0].strip() for line in lines.splitlines())
    return [Requirement(line) for line in stripped if line]


def name_of(requirement: Requirement) -> str:
    return canonicalize_name(requirement.name)


def lower_bound_of(requirement: Requirement) -> Version | None:
    bounds = [Version(each.version) for each in requirement.specifier if each.operator == ">="]
    return bounds[0] if bounds else None


@pytest.fixture(scope="module")
def tools() -> list[Requirement]:
    """What the extra `dev` names: this package with the extras that tests need, and the tools of development."""
    return requirements_in(setup_cfg()["options.extras_require"]["dev"])


@pytest.fixture(scope="module")
def needed(tools) -> list[Requirement]:
    """What the package and its tested extras need, which users install too."""
    extras = next(tool.extras for tool in tools if tool.extras)
    options = setup_cfg()
    needed = [options["options"]["install_requires"], *(options["options.extras_require"][name] for name in extras)]
    return [requirement for lines in needed for requirement in requirements_in(lines)]


def setup_cfg() -> ConfigParser:
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def constraints(name: str) -> list[Requirement]:
    return requirements_in((ROOT / name).read_text(encoding="utf-8"))


def test_whatever_users_install_with_the_package_has_a_lower_bound(needed):
    assert [str(requirement) for requirement in needed if lower_bound_of(requirement) is None] == []


def test_every_lower_bound_is_the_release_that_make_oldest_installs(needed, tools):
    bounds = {(name_of(each), lower_bound_of(each)) for each in [*needed, *tools]}
    pins = {
        (name_of(pin), Version(str(pin.specifier).removeprefix("=="))) for pin in constraints("constraints-oldest.txt")
    }
    assert {(name, bound) for name, bound in bounds if bound is not None} == pins


def test_what_make_test_installs_is_within_the_bounds(needed):
    pins = {name: [] for name in map(name_of, needed)}
    for pin in constraints("constraints.txt"):
        pins.get(name_of(pin), []).append(str(pin.specifier).removeprefix("=="))
    for requirement in needed:
        releases = pins[name_of(requirement)]
        assert releases, requirement
        assert list(requirement.specifier.filter(releases)) == releases, requirement
