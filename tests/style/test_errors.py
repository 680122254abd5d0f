"""Every Rust error has exactly one Python class, and no arm catches what was forgotten."""

import re

from support.house import CRATES, without_tests

from userfault import errors

FILE = CRATES / "pybind" / "src" / "errors.rs"


def error_enums():
    """Enum name -> variants, for every public enum of the lower crates that derives the error trait."""
    found = {}
    for crate in ("uffd", "engine"):
        for path in sorted((CRATES / crate / "src").rglob("*.rs")):
            text = without_tests(path.read_text())
            for name, body in re.findall(
                r"#\[derive\([^)]*\bError\b[^)]*\)\]\s*(?:#\[[^\]]*\]\s*)*pub enum (\w+)\s*\{(.*?)^\}",
                text,
                re.MULTILINE | re.DOTALL,
            ):
                found[name] = re.findall(r"^    (\w+)\s*(?:[({,]|$)", body, re.MULTILINE)
    return found


def mapping():
    return without_tests(FILE.read_text())


def test_mapping_has_no_wildcard_arm():
    """A new variant has to be a compiler error there."""
    assert re.findall(r"^\s*(?:_|\w+ if [^=]*)\s*=>", mapping(), re.MULTILINE) == []


def test_mapping_names_each_variant_once():
    """Of every enum that is taken apart there, each variant has one arm."""
    text = mapping()
    for name, variants in error_enums().items():
        used = re.findall(rf"\b{name}::(\w+)", text)
        used = [one for one in used if one in variants]
        if used:
            assert sorted(used) == sorted(variants), name


def test_mapping_takes_the_engine_error_apart():
    """The enum of the engine is there, and this test finds it."""
    enums = error_enums()
    assert "Error" in enums
    assert set(re.findall(r"\bError::(\w+)", mapping())) == set(enums["Error"])


def test_mapping_names_only_classes_that_exist():
    """Classes are looked up by name at run time: a misspelled one would be found by a user."""
    named = {
        name
        for path in (CRATES / "pybind" / "src").rglob("*.rs")
        for name in re.findall(r"\"(\w+Error|PagePurged)\"", without_tests(path.read_text()))
    }
    assert named <= set(errors.__all__)
    for name in named:
        assert issubclass(getattr(errors, name), errors.UserfaultError)
