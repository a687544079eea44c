"""A method is a file: found without being registered, described by its own signature."""

import pytest

from atlasseg import methods
from atlasseg.errors import InputError


def test_every_stage_lists_only_files_that_define_its_verb():
    for stage, verb in methods.VERBS.items():
        found = methods.names(stage)
        assert found == tuple(sorted(found)) and found
        for name in found:
            assert not name.startswith("_")
            assert methods.get(stage, name).function.__name__ == verb


def test_files_of_a_stage_that_are_no_methods_are_not_listed():
    assert not {"quality", "outliers"} & set(methods.names("registration"))


@pytest.mark.parametrize(("stage", "name"), [(s, n) for s in methods.VERBS for n in methods.names(s)])
def test_every_method_is_described(stage, name):
    method = methods.get(stage, name)
    assert method.summary.endswith(".") and len(method.summary) > 20
    assert all(parameter.description for parameter in method.parameters), [
        parameter.name for parameter in method.parameters if not parameter.description
    ]
    assert not {p.name for p in method.parameters} & methods.GIVEN_BY_PIPELINE
    assert all(parameter.default is not parameter for parameter in method.parameters)


def test_unknown_names_are_answered_with_those_that_exist():
    with pytest.raises(InputError, match=r"did you mean 'majority'\?.*local_weighted"):
        methods.get("fusion", "majorty")
    with pytest.raises(InputError, match=r"no stage 'fusing'.*fusion"):
        methods.names("fusing")


def test_a_package_from_elsewhere_adds_a_method(monkeypatch, tmp_path):
    (tmp_path / "elsewhere_fusion.py").write_text(
        '"""Votes of nobody, for this test."""\n\n\ndef fuse(target, candidates, *, power: float = 2.0):\n'
        '    """Fuse.\n\n    Parameters\n    ----------\n    power : float\n        How much.\n    """\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    entry = methods.importlib.metadata.EntryPoint("nobody", "elsewhere_fusion", "atlasseg.fusion")
    monkeypatch.setattr(
        methods.importlib.metadata, "entry_points", lambda group: [entry] if group == "atlasseg.fusion" else []
    )
    methods._modules.cache_clear()
    try:
        method = methods.get("fusion", "nobody")
        assert [(p.name, p.annotation, p.default, p.description) for p in method.parameters] == [
            ("power", float, 2.0, "How much.")
        ]
    finally:
        methods._modules.cache_clear()
