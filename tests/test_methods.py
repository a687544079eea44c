"""The registry of methods: whatever callable, registered where it stands, complete or an error."""

import functools
import importlib
import inspect
import os
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from pydantic import ConfigDict, TypeAdapter

import atlasseg
from atlasseg import cli, methods
from atlasseg.atlases.library import read_library, read_targets
from atlasseg.errors import InputError
from atlasseg.methods import registry
from atlasseg.pipeline import align, fuse
from atlasseg.recipe import parse_recipe
from atlasseg.recipe.defaults import default_tables
from atlasseg.volume import Atlas, Image, LabelMap, Mask

EVERY = [(stage, name) for stage in methods.STAGES for name in methods.names(stage)]

FUSE = '''
"""Votes of nobody, for this test."""

from typing import Annotated

from annotated_types import Gt

from atlasseg.methods import Data, method
from atlasseg.volume import Mask


@method("fusion")
def fuse(target, candidates, *, power: Annotated[float, Gt(0)] = 2.0, mask: str = "given"):
    """Fuse.

    Parameters
    ----------
    power : float
        How much.
    mask : str
        Which mask.
    """
    return candidates[0].labels, power, mask
'''


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_registered", {stage: dict(found) for stage, found in registry._registered.items()})
    yield
    registry._entry_points.cache_clear()
    registry._load.cache_clear()


@pytest.fixture
def plugin(monkeypatch, tmp_path):
    """Writes modules, and has entry points name them."""
    monkeypatch.syspath_prepend(tmp_path)
    entries = []

    def write(module, text, **names):
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(text))
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, module, raising=False)
        entries.extend(importlib.metadata.EntryPoint(name, value, "atlasseg.fusion") for name, value in names.items())

    monkeypatch.setattr(registry, "entry_points", lambda group: [e for e in entries if e.group == group])
    registry._entry_points.cache_clear()
    registry._load.cache_clear()
    return write


def vote(target, candidates, *, power: float = 2.0):
    """Vote, in a function made elsewhere.

    Parameters
    ----------
    power : float
        How much.
    """
    return power


def factory(power):
    def fuse(target, candidates, *, more: int = 1):
        """Vote by a factory.

        Parameters
        ----------
        more : int
            How much more.
        """
        return power + more

    return fuse


class Callable:
    def __init__(self, power):
        self.power = power

    def __call__(self, target, candidates, *, more: int = 1):
        """Vote by an object.

        Parameters
        ----------
        more : int
            How much more.
        """
        return self.power + more


def test_every_stage_has_methods_in_alphabetical_order():
    for stage in methods.STAGES:
        found = methods.names(stage)
        assert found == tuple(sorted(found)) and found
    assert not {"quality", "outliers", "fit"} & set(methods.names("registration"))
    listed = methods.list_methods()
    assert [(m.stage, m.name) for m in listed] == EVERY
    models = ["chain", "field", "locus", "markov_field", "mixture", "nearest_neighbours"]
    assert [m.name for m in methods.list_methods("tissue")] == models


@pytest.mark.parametrize(("stage", "name"), EVERY)
def test_every_method_is_described_and_its_defaults_are_of_their_types(stage, name):
    method = methods.get(stage, name)
    assert method.summary.endswith((".", "``).")) and len(method.summary) > 20
    assert method.name in repr(method) and method.stage in repr(method)
    assert not {p.name for p in method.parameters} & method.data
    assert set(methods.STAGES[stage].positional) <= method.data
    for parameter in method.parameters:
        assert parameter.description
        if not parameter.required:
            adapter = TypeAdapter(parameter.annotation, config=ConfigDict(arbitrary_types_allowed=True))
            adapter.validate_python(parameter.default, strict=True)


def test_every_method_survives_pickling():
    for method in methods.list_methods():
        assert pickle.loads(pickle.dumps(method)).function is method.function


def test_linear_registrations_share_all_but_the_transform():
    found = {name: methods.get("registration", name) for name in ("rigid", "similarity", "affine")}
    assert len({tuple((p.name, p.default, p.description) for p in m.parameters) for m in found.values()}) == 1
    assert len({m.summary for m in found.values()}) == 3 and len({m.function.__doc__ for m in found.values()}) == 3
    assert "12 parameters" in found["affine"].function.__doc__ and "TRANSFORM" not in found["affine"].function.__doc__
    assert found["rigid"].summary.startswith("Rigid")


def test_unknown_names_are_answered_with_those_that_exist():
    with pytest.raises(InputError, match=r"did you mean 'majority'\?.*local_weighted"):
        methods.get("fusion", "majorty")
    with pytest.raises(InputError, match=r"a stage with methods, got 'fusing'.*fusion"):
        methods.names("fusing")
    with pytest.raises(InputError, match=r"a stage with methods, got 'fusing'.*fusion"):
        methods.method("fusing", name="x")(vote)


def test_needs_are_declared():
    unet = methods.get("refinement", "unet")
    assert "torch" in unet.needs.libraries and unet.needs.model == "model" and unet.has_device
    assert unet.memory_bytes(methods.Workload(1_000_000)) > unet.memory_bytes(methods.Workload(1000)) > 1e8
    majority, joint = methods.get("fusion", "majority"), methods.get("fusion", "joint")
    assert (majority.needs.compares_intensities, joint.needs.compares_intensities) == (False, True)
    assert majority.memory_bytes(methods.Workload(1000)) == 0 and not majority.has_device and joint.has_device
    assert methods.get("registration", "syn").needs.channels == "one"
    assert set(methods.get("regions", "split_and_merge").needs.companions) == {"hierarchy", "blocks"}


@pytest.mark.parametrize(
    ("function", "given", "result"),
    [
        (vote, {"power": 3.0}, 3.0),
        (factory(5), {"more": 2}, 7),
        (functools.partial(vote, power=4.0), {}, 4.0),
        (Callable(10), {"more": 2}, 12),
    ],
    ids=["imported", "factory", "partial", "object"],
)
def test_any_callable_is_registered_as_it_is(function, given, result):
    made = methods.register_method("fusion", function, name="elsewhere", compares_intensities=False)
    assert methods.get("fusion", "elsewhere") is made and "elsewhere" in methods.names("fusion")
    assert made.summary.startswith("Vote") and not made.needs.compares_intensities
    recipe = parse_recipe({"fusion": {"method": "elsewhere", "elsewhere": given}})
    assert recipe.fusion.method(None, []) == result
    name = "power" if "power" in given or not given else "more"
    with pytest.raises(InputError, match=rf"\[fusion.elsewhere\] {name}: .*number|integer"):
        parse_recipe({"fusion": {"method": "elsewhere", "elsewhere": {name: "much"}}})


def test_the_decorator_returns_the_function_and_takes_the_name_of_its_file():
    assert methods.method("fusion")(vote) is vote
    assert methods.get("fusion", "test_methods").function is vote
    assert methods.get("fusion", "test_methods").summary == __doc__.split("\n\n")[0]
    assert methods.get("fusion", "test_methods").module == __name__


def test_an_entry_point_may_name_a_module_or_a_function(plugin):
    plugin("elsewhere_a", FUSE, elsewhere_a="elsewhere_a")
    plugin("elsewhere_b", FUSE.replace('@method("fusion")\n', ""), mine="elsewhere_b:fuse")
    assert {"elsewhere_a", "mine"} <= set(methods.names("fusion"))
    for name in ("elsewhere_a", "mine"):
        method = methods.get("fusion", name)
        assert [(p.name, p.default, p.description) for p in method.parameters] == [
            ("power", 2.0, "How much."),
            ("mask", "given", "Which mask."),
        ]
    assert methods.get("fusion", "elsewhere_a").summary == "Votes of nobody, for this test."
    assert methods.get("fusion", "mine").summary == "Fuse."


def test_a_plugin_may_have_a_parameter_called_mask(plugin):
    plugin("elsewhere", FUSE, elsewhere="elsewhere")
    recipe = parse_recipe({"fusion": {"method": "elsewhere", "elsewhere": {"mask": "brain", "power": 3}}})
    step = recipe.fusion.method
    grid = np.eye(4)
    volume = LabelMap(np.zeros((2, 3, 4), int), grid)
    candidate = Atlas("a", Image(np.zeros((2, 3, 4)), grid), volume)
    assert step(None, [candidate], mask="data that the pipeline gives")[1:] == (3.0, "brain")
    with pytest.raises(InputError, match=r"\[fusion.elsewhere\] power: .*greater than 0, got -1"):
        parse_recipe({"fusion": {"method": "elsewhere", "elsewhere": {"power": -1}}})


def test_a_module_that_registers_nothing_is_told(plugin):
    plugin("elsewhere", FUSE.replace('@method("fusion")\n', ""), elsewhere="elsewhere")
    with pytest.raises(InputError, match=r"entry point elsewhere = elsewhere .*registers no fusion method"):
        methods.get("fusion", "elsewhere")


def test_a_plugin_that_cannot_be_imported_is_named(plugin):
    plugin("elsewhere", "import no_such_library", elsewhere="elsewhere")
    with pytest.raises(InputError, match=r"entry point elsewhere = elsewhere .*no_such_library"):
        methods.names("fusion")
    assert methods.get("fusion", "majority")  # others are not kept from working


def test_the_pipeline_gives_a_fusion_the_mask_of_the_target(plugin, dataset):
    text = FUSE.replace('mask: str = "given"', "mask: Data[Mask | None] = None")
    text = text.replace("    return candidates[0]", "    seen.append(mask)\n    return candidates[0].labels #")
    plugin("masked", text + "\nseen = []\n", masked="masked")
    library = read_library(dataset / "atlases")
    target, _ = read_targets([dataset / "targets"])[0].read()
    mask = Mask(target.array > target.array.mean(), target.affine)
    recipe = parse_recipe({"fusion": {"method": "masked"}, "registration": {"steps": ["rigid"]}})
    alignment = align(target, [library.read(library.ids[0])], recipe, mask=mask)
    fuse(alignment, recipe.fusion.method)
    np.testing.assert_array_equal(sys.modules["masked"].seen[0].array, mask.array)


def test_two_methods_with_one_name_are_an_error(plugin):
    plugin("elsewhere_a", FUSE.replace('@method("fusion")\n', ""), majority="elsewhere_a:fuse")
    plugin("elsewhere_b", FUSE, other="elsewhere_b:fuse")
    with pytest.raises(InputError, match=r"entry point other = elsewhere_b:fuse .*registered as 'elsewhere_b'"):
        methods.get("fusion", "other")
    methods.register_method("fusion", vote, name="twice")
    with pytest.raises(InputError, match=r"'twice'.*two functions have this name"):
        methods.register_method("fusion", factory(1), name="twice")
    with pytest.raises(InputError, match=r"'majority'.*atlasseg.fusion.majority and in elsewhere_a"):
        methods.get("fusion", "majority")
    with pytest.raises(InputError, match=r"'majority'.*atlasseg.fusion.majority and in .*test_methods"):
        methods.register_method("fusion", vote, name="majority")


def test_a_module_that_is_run_again_replaces_its_own(plugin):
    plugin("elsewhere", FUSE)
    first = importlib.import_module("elsewhere")
    again = importlib.reload(first)
    assert methods.get("fusion", "elsewhere").function is again.fuse
    methods.register_method("fusion", vote, name="twice")
    methods.register_method("fusion", vote, name="twice")  # the very same function


def incomplete_without_candidates(target, *, power: float = 1.0):
    """Fuse.

    Parameters
    ----------
    power : float
        How much.
    """


def incomplete_type(target, candidates, *, power=1.0):
    """Fuse.

    Parameters
    ----------
    power : float
        How much.
    """


def incomplete_description(target, candidates, *, power: float = 1.0):
    """Fuse."""


def incomplete_docstring(target, candidates):
    pass


def incomplete_keywords(target, candidates, **settings):
    """Fuse."""


def incomplete_data(target, candidates, *, prior: methods.Data[object] = None):
    """Fuse."""


def incomplete_swapped(candidates, target):
    """Fuse."""


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (incomplete_without_candidates, r"expected the data arguments \(target, candidates\) first, got \(target\)"),
        (incomplete_type, r"parameter 'power': expected a type"),
        (incomplete_description, r"the docstring does not describe power"),
        (incomplete_docstring, r"expected a docstring"),
        (incomplete_keywords, r"expected named parameters, got \*\*settings"),
        (incomplete_data, r"data argument 'prior': expected one that the stage passes \(mask"),
        (incomplete_swapped, r"expected the data arguments \(target, candidates\) first, got \(candidates, target\)"),
        ("fuse", r"expected a function, got str"),
    ],
)
def test_an_incomplete_method_is_an_error_when_it_is_registered(function, told):
    with pytest.raises(InputError, match=rf"fusion method 'lacking'.*{told}"):
        methods.register_method("fusion", function, name="lacking")
    assert "lacking" not in methods.names("fusion")


def test_a_registration_without_its_starts_is_incomplete():
    def register(fixed, moving, *, fixed_mask: methods.Data[object] = None, moving_masks: methods.Data[object] = None):
        """Register."""

    with pytest.raises(InputError, match=r"registration method 'lacking'.*expected the data argument 'initial'"):
        methods.register_method("registration", register, name="lacking")


def test_a_name_that_no_recipe_could_write_is_an_error():
    for name in ("a.b", "a+b", "3d", ""):
        if name:
            with pytest.raises(InputError, match="letters, digits and underscores"):
                methods.register_method("fusion", vote, name=name)
    code = "from atlasseg.methods import method\nmethod('fusion')(lambda target, candidates: 0)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"}
    )
    assert "InputError" in done.stderr and "expected a name for a method that is not in a file" in done.stderr


def test_a_former_name_of_a_parameter_is_answered_with_the_present_one():
    told = r"\[registration.diffeomorphic\] field_sigma_voxels is now called total_field_sigma_voxels. Rename the key"
    tables = {"steps": ["diffeomorphic"], "diffeomorphic": {"field_sigma_voxels": [1.0, 1.0, 1.0, 1.0]}}
    with pytest.raises(InputError, match=told):
        parse_recipe({"fusion": {"method": "majority"}, "registration": tables})
    with pytest.raises(InputError, match="expected the parameter 'strength', the new name of a renamed one"):
        methods.register_method("fusion", vote, name="wrong", renamed={"powr": "strength"})


def test_needs_that_do_not_exist_are_refused():
    with pytest.raises(InputError, match=r"fusion method 'wrong'.*unknown need 'libraris'.*did you mean 'libraries'"):
        methods.register_method("fusion", vote, name="wrong", libraris=("torch",))
    with pytest.raises(InputError, match=r"fusion method 'wrong'.*expected a parameter 'folder' for the model"):
        methods.register_method("fusion", vote, name="wrong", model="folder")


def test_the_methods_used_by_default_are_the_same_everywhere():
    default = {stage: each.default for stage, each in methods.STAGES.items() if each.default}
    for stage, names in default.items():
        assert [methods.get(stage, name).name for name in names] == list(names)
    tables = default_tables("multi")
    assert tables["preprocessing"]["steps"] == list(default["preprocessing"])
    assert tables["registration"]["steps"] == list(default["registration"])

    def given(function, name="method"):
        return inspect.signature(function).parameters[name].default

    assert given(atlasseg.register) == default["registration"][-1]
    assert given(cli.register.register, "steps").split(",") == list(default["registration"])
    assert given(atlasseg.fuse) == given(cli.fuse.fuse) == tables["fusion"]["method"] == default["fusion"][-1]
    assert given(atlasseg.tissue) == cli.tissue.DEFAULT_MODEL == default["tissue"][-1]
    assert given(cli.regions.regions) == default["regions"][-1]
    assert given(atlasseg.evaluate, "surface_tolerance_mm") == parse_recipe(tables).evaluation.surface_tolerance_mm
