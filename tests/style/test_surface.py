"""Every public name has a docstring and a stub, and the stub says what the module does."""

import ast
import importlib
import inspect
import pkgutil

import pytest
from support.house import PACKAGE

import userfault
from userfault import _core as core

STUB = PACKAGE / "_core.pyi"


def stub_names():
    """Public name -> its syntax node in the stub; of overloads the last."""
    return {name: node for node in ast.parse(STUB.read_text()).body for name in names_of(node) if not name.startswith("_")}


def names_of(node):
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return [node.name]
    if isinstance(node, ast.AnnAssign):
        return [node.target.id]
    return []


def public(module):
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


def members(class_node):
    """Method or attribute name -> node, for the body of a class in the stub."""
    return {name: node for node in class_node.body for name in names_of(node)}


def parameters(node):
    """Names and kinds of a stub's function, without self."""
    given = node.args
    names = [(one.arg, "positional") for one in given.posonlyargs + given.args]
    names += [("*" + given.vararg.arg, "rest")] if given.vararg else []
    names += [(one.arg, "keyword") for one in given.kwonlyargs]
    return [pair for pair in names if pair[0] not in ("self", "cls")]


def real_parameters(function):
    """The same of a native function, from its text signature; None where it has none."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        return None
    kinds = {"KEYWORD_ONLY": "keyword", "VAR_POSITIONAL": "rest"}
    found = [
        ("*" * (one.kind.name == "VAR_POSITIONAL") + one.name, kinds.get(one.kind.name, "positional"))
        for one in signature.parameters.values()
    ]
    return [pair for pair in found if pair[0] not in ("self", "cls")]


def public_modules():
    """Modules of the package whose names do not begin with an underscore, without the command line."""
    found = [userfault.__name__]
    for info in pkgutil.walk_packages(userfault.__path__, "userfault."):
        if "._" not in info.name and not info.name.startswith(("userfault.cli", "userfault.testing")):
            found.append(info.name)
    return found


def test_stub_has_the_names_of_the_module():
    """Neither knows a name that the other does not."""
    native = {name for name, value in public(core).items() if not inspect.ismodule(value)}
    assert set(stub_names()) == native


def test_stub_classes_have_the_members_of_the_module():
    """The same for what is in classes."""
    for name, node in stub_names().items():
        if not isinstance(node, ast.ClassDef) or not hasattr(core, name):
            continue
        real = {one for one in vars(getattr(core, name)) if not one.startswith("_")}
        stub = {one for one in members(node) if not one.startswith("_")}
        assert stub == real, name


def test_stub_functions_have_the_parameters_of_the_module():
    """Names, order and kind agree."""
    for name, node in stub_names().items():
        real = getattr(core, name, None)
        pairs = [(name, node, real)] if isinstance(node, ast.FunctionDef) else []
        if isinstance(node, ast.ClassDef):
            pairs += [
                (f"{name}.{method}", inner, vars(real).get(method))
                for method, inner in members(node).items()
                if isinstance(inner, ast.FunctionDef) and not method.startswith("_") and not is_property(inner)
            ]
        for label, inner, function in pairs:
            function = getattr(function, "__func__", function)
            found = real_parameters(function)
            if found is not None:
                assert parameters(inner) == found, label


def is_property(node):
    return any("property" in ast.unparse(one) or ".setter" in ast.unparse(one) for one in node.decorator_list)


def test_stub_documents_everything():
    """The stub is where native names are explained."""
    missing = []
    for name, node in stub_names().items():
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not ast.get_docstring(node):
            missing.append(name)
        if isinstance(node, ast.ClassDef):
            missing += [
                f"{name}.{member}"
                for member, inner in members(node).items()
                if isinstance(inner, ast.FunctionDef) and not member.startswith("_") and not ast.get_docstring(inner)
            ]
    assert missing == []


@pytest.mark.parametrize("name", public_modules())
def test_public_names_have_docstrings(name):
    """So that help() answers; a module's public names are its __all__."""
    module = importlib.import_module(name)
    assert module.__doc__, name
    missing = []
    for public_name in getattr(module, "__all__", []):
        value = inspect.getattr_static(module, public_name, None) or getattr(module, public_name)
        if not (inspect.isclass(value) or inspect.isroutine(value)) or not is_ours(value):
            continue
        missing += [f"{name}.{public_name}"] if not has_words(value) else []
        missing += [f"{name}.{public_name}.{one}" for one in silent_members(value)] if inspect.isclass(value) else []
    assert missing == []


def is_ours(value):
    return (getattr(value, "__module__", None) or "").startswith("userfault")


def has_words(value):
    """A docstring of its own: not an inherited one; native names may have theirs in the stub."""
    if getattr(value, "__module__", "").endswith("_core"):
        return True
    return bool(value.__doc__)


def silent_members(value):
    """Public methods and properties that a class defines itself, without a docstring."""
    if getattr(value, "__module__", "").endswith("_core"):
        return []
    return [
        name
        for name, member in vars(value).items()
        if not name.startswith("_")
        and (inspect.isroutine(member) or isinstance(member, (property, staticmethod, classmethod)))
        and not inspect.getdoc(getattr(value, name))
    ]


def test_package_lists_its_public_names():
    """`userfault.__all__` is what a user may rely on, sorted out by hand, each name there."""
    assert sorted(set(userfault.__all__)) == sorted(userfault.__all__)
    for name in userfault.__all__:
        assert hasattr(userfault, name)
