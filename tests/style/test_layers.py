"""Imports point downward only: Python modules, crates, and the modules of a crate."""

import ast
import re
import tomllib
from graphlib import CycleError, TopologicalSorter

import pytest
from support.house import CRATES, PACKAGE, without_tests

# From the ground up. Names on one line may not use each other.
RUNGS = [
    {"_core"},
    {"errors"},
    {"units"},
    {"kernel"},
    {"sources"},
    {"image"},
    {"region"},
    {"checking"},
    {"mman", "volatile"},
    {"pager"},
    {"mapping"},
    {"report"},
    {"rivals"},
    {"cli"},
]
RUNG_OF = {name: number for number, names in enumerate(RUNGS) for name in names}
FREE = {"__init__", "__main__", "testing"}
MAY_USE_THE_PUBLIC_NAMES = {"cli", "report"}


def part_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def python_files():
    return sorted(path for path in PACKAGE.rglob("*.py") if part_of(path) not in FREE)


def imported_parts(path):
    """Parts of the package that a module imports at run time, anywhere in it; "" is the package itself."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: imports are absolute here"
            names = [node.module]
            if node.module == "userfault":
                names = [f"userfault.{one.name}" if one.name in RUNG_OF else "userfault" for one in node.names]
        else:
            continue
        yield from ([*name.split("."), ""][1] for name in names if name.split(".")[0] == "userfault")


def test_python_parts_have_a_rung():
    """A new part says where it stands."""
    assert {part_of(path) for path in python_files()} <= set(RUNG_OF)


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_python_imports_point_down(path):
    """A module uses its own part and lower rungs."""
    mine = part_of(path)
    for used in imported_parts(path):
        if used == "":
            assert mine in MAY_USE_THE_PUBLIC_NAMES, "imports the package itself, which imports everything"
        else:
            assert used == mine or RUNG_OF[used] < RUNG_OF[mine], f"{mine} imports {used}"


def test_crates_point_down():
    """uffd knows no other crate, engine only uffd, pybind both; only pybind names pyo3."""
    allowed = {"uffd": set(), "engine": {"uffd"}, "pybind": {"uffd", "engine"}}
    for crate, below in allowed.items():
        needs = set(tomllib.loads((CRATES / crate / "Cargo.toml").read_text())["dependencies"])
        assert needs & set(allowed) <= below
        assert ("pyo3" in needs) == (crate == "pybind")


def rust_modules(crate):
    """Module -> (its group among the `mod` lines of lib.rs, modules that it uses)."""
    source = CRATES / crate / "src"
    lib = (source / "lib.rs").read_text()
    group_of, group = {}, 0
    for line in lib.splitlines():
        found = re.match(r"\s*(?:pub(?:\(crate\))? )?mod (\w+);", line)
        if found:
            group_of[found[1]] = group
        elif not line.strip():
            group += 1
    exports = {
        name.split(" as ")[-1].strip(): module
        for module, names in re.findall(r"pub use (?:self::)?(\w+)::(?:\w+::)*\{?([^;]*?)\}?;", lib)
        for name in names.split(",")
    }
    return {name: (group_of[name], used_modules(source, name, group_of, exports)) for name in group_of}


def used_modules(source, name, modules, exports):
    """Modules that `name` uses, directly or through what lib.rs exports again."""
    files = [source / f"{name}.rs", *(source / name).rglob("*.rs")]
    used = set()
    for path in files:
        if not path.exists() or path.stem.endswith("tests") or path.stem == "testing":
            continue
        for first in re.findall(r"\bcrate::(\w+|\{[^;]*\})", without_tests(path.read_text())):
            outermost = re.sub(r"::\{[^{}]*\}", "", first.strip("{}"))
            for item in outermost.split(","):
                head = item.strip().split("::")[0]
                used.add(head if head in modules else exports.get(head, ""))
    return used - {"", name}


@pytest.mark.parametrize("crate", ["uffd", "engine", "pybind"])
def test_rust_modules_point_down(crate):
    """lib.rs lists modules from the ground up, in groups: none uses a later group, and none goes in circles."""
    modules = rust_modules(crate)
    upward = [
        f"{name} uses {used}"
        for name, (group, uses) in modules.items()
        for used in sorted(uses)
        if used in modules and modules[used][0] > group
    ]
    assert upward == []
    try:
        list(TopologicalSorter({name: uses for name, (_, uses) in modules.items()}).static_order())
    except CycleError as error:
        pytest.fail(f"modules use each other in a circle: {' -> '.join(error.args[1])}")


def test_modules_of_the_calls_of_2014_point_down():
    """mman/mod.rs lists its modules from the ground up: each names only those above it."""
    folder = CRATES / "engine" / "src" / "mman"
    text = (folder / "mod.rs").read_text()
    listed = re.findall(r"^//! (\w+)  ", text, re.M)
    assert sorted(listed) == sorted(re.findall(r"^pub mod (\w+);", text, re.M))
    for place, name in enumerate(listed):
        files = [path for path in (folder / f"{name}.rs", *(folder / name).glob("*.rs")) if path.exists()]
        code = "".join(without_tests(path.read_text()) for path in files)
        named = re.findall(r"\w+", " ".join(re.findall(r"\bcrate::mman::(\w+|\{[^;]*\})", code)))
        assert set(named) & set(listed[place + 1 :]) == set(), name
