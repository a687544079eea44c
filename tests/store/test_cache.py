"""Kept results: the same bits, made anew exactly where something they depend on changed, and never half there."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from atlasseg import io
from atlasseg.atlases.library import read_library, read_targets
from atlasseg.pipeline import segment
from atlasseg.recipe import parse_recipe
from atlasseg.store import cache as cache_module
from atlasseg.store import fingerprints as versions
from atlasseg.store import serialisation as packing
from atlasseg.store.cache import PARTIAL, Cache, clear, evict, find_damaged, list_entries
from atlasseg.transforms import Affine, BSplineField, Chain, DisplacementField, Inverse
from atlasseg.volume import Image, LabelMap, Mask, ProbabilityMap

TABLES = {
    "preprocessing": {"steps": ["intensity"]},
    "registration": {"steps": ["affine"]},
    "fusion": {"method": "majority"},
}


@pytest.fixture
def case(dataset):
    """A scan, the atlases, and a folder for what is kept."""
    library = read_library(dataset / "atlases")
    scan, _ = read_targets([dataset / "targets"])[0].read()
    return scan, [library.read(id_) for id_ in library.ids], dataset / "kept"


class Counting(Cache):
    """Remembers what had to be computed."""

    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        self.made = []

    def _compute(self, stage, absent, compute):
        self.made.append((stage, len(absent)))
        return super()._compute(stage, absent, compute)


CHECKS = {"coarsen", "measure_geometry", "pair_similarity", "mirror_similarities", "pair_mirror_similarities"}
"""What compares a scan with its library; it is kept too."""


def run(case, tables=TABLES, **options):
    """Result and what was computed for it, in a process that remembers nothing; the checks where it was they alone."""
    scan, atlases, folder = case
    packing._known.clear()
    kept = Counting(folder, **options)
    result = segment(scan, atlases, parse_recipe(tables), executor=kept)
    return result, [made for made in kept.made if made[0] not in CHECKS] or kept.made


ALL = [
    *[("preprocessing.intensity", 1)] * 4,
    ("registration.affine", 3),
    *[("propagate", 1)] * 3,
    *[("measure_fit", 1)] * 3,
    ("fusion.majority", 1),
]


def test_a_mask_is_part_of_what_a_registration_depends_on(case):
    """Another mask of the target, or of an atlas, and the registration is made anew; the same, and it is kept."""
    scan, atlases, folder = case
    tables = {**TABLES, "preprocessing": {"steps": ["intensity"], "mask": "given"}}

    def registered(mask, own):
        packing._known.clear()
        kept = Counting(folder)
        first = replace(atlases[0], mask=own)
        segment(scan, [first, *atlases[1:]], parse_recipe(tables), mask=mask, executor=kept)
        return dict(kept.made).get("registration.affine", 0)

    full = np.ones(scan.shape, bool)
    part = full.copy()
    part[:2] = False
    mine, own = Mask(full, scan.affine), Mask(np.ones(atlases[0].image.shape, bool), atlases[0].image.affine)
    assert registered(mine, own) == 3 and registered(mine, own) == 0
    assert registered(Mask(part, scan.affine), own) == 3
    cut = own.array.copy()
    cut[:, :2] = False
    assert registered(mine, own.with_array(cut)) == 1
    assert registered(mine, own) == 0


def test_the_second_time_nothing_is_computed_and_the_bits_are_the_same(case):
    bare = segment(case[0], case[1], parse_recipe(TABLES))
    for made in (ALL, []):
        result, computed = run(case)
        assert computed == made
        assert io.content_hash(result.probabilities) == io.content_hash(bare.probabilities)
        assert result.labels.name == bare.labels.name
        for a, b in zip(result.alignment.candidates, bare.alignment.candidates, strict=True):
            assert (a.similarity, a.quality, a.qc.keep) == (b.similarity, b.quality, b.qc.keep)
            np.testing.assert_array_equal(a.transform.matrix, b.transform.matrix)


def test_what_does_not_depend_on_a_change_is_kept(case):
    run(case)
    scan, atlases, folder = case
    assert run(case, {**TABLES, "fusion": {"method": "global_weighted"}})[1] == [("fusion.global_weighted", 1)]
    assert run(case, {**TABLES, "fusion": {"method": "majority", "majority": {"soft": False}}})[1] == ALL[-1:]

    array = atlases[1].labels.array.copy()
    array[array == 2] = 3
    relabelled = replace(atlases[1], labels=atlases[1].labels.with_array(array))
    changed = scan, [atlases[0], relabelled, atlases[2]], folder
    assert run(changed)[1] == [("propagate", 1), ("measure_fit", 1), ("fusion.majority", 1)]

    brighter = replace(atlases[1], image=atlases[1].image.with_array(atlases[1].image.array ** 2))
    assert run((scan, [atlases[0], brighter, atlases[2]], folder))[1] == [
        ("preprocessing.intensity", 1),
        ("registration.affine", 1),
        ("propagate", 1),
        ("measure_fit", 1),
        ("fusion.majority", 1),
    ]
    assert run((scan, atlases[:2], folder))[1] == [("fusion.majority", 1)]
    slower = {**TABLES, "registration": {"steps": ["affine"], "affine": {"iterations": 29}}}
    assert [stage for stage, _ in run(case, slower)[1]] == [stage for stage, _ in ALL[4:]]
    named = replace(scan, name="another"), [replace(atlas, id=f"x{atlas.id}") for atlas in atlases], folder
    result, computed = run(named)
    assert computed == [] and result.alignment.target.name == "another"


@pytest.mark.parametrize("damage", [lambda whole: whole[:-99], lambda whole: b"", lambda whole: whole[:200] + b"?" * 9])
def test_a_damaged_entry_is_made_again_and_said(case, caplog, damage):
    before, _ = run(case)
    path = next((case[2] / "fusion.majority").iterdir())
    path.write_bytes(damage(path.read_bytes()))
    assert [entry.path for entry, _ in find_damaged(case[2])] == [path]
    after, computed = run(case)
    assert computed == [("fusion.majority", 1)]
    assert f"{path} cannot be read" in caplog.text
    assert io.content_hash(after.probabilities) == io.content_hash(before.probabilities)
    assert list(find_damaged(case[2])) == []


def test_no_damage_is_taken_for_a_value(tmp_path, caplog):
    """Ten thousand flips, truncations, additions, gaps and swaps: each is told as damage, and none gives a value."""
    kept, rng = Cache(tmp_path), np.random.default_rng(5)
    values = {
        "a" * 64: {"shape": (3, 5), "array": np.arange(15, dtype=np.int16).reshape(3, 5)},
        "b" * 64: {"shape": (5, 3), "array": np.arange(15, dtype=np.int16).reshape(5, 3) + 1},
        "c" * 64: DisplacementField(rng.normal(size=(4, 3, 2, 3)).astype(np.float32), np.eye(4)),
    }
    for stage in ("one", "two"):
        for key, value in values.items():
            kept.put(stage, key, value)
    paths = sorted(tmp_path.rglob("*.entry"))
    whole = {path: path.read_bytes() for path in paths}
    assert len(set(whole.values())) == 6 and list(find_damaged(tmp_path)) == []
    for n in range(10_000):
        path = paths[n % len(paths)]
        content = bytearray(whole[path])
        start, kind = int(rng.integers(len(content))), n % 5
        if kind == 0:
            content[start] ^= 1 << rng.integers(8)
        elif kind == 1:
            del content[start:]
        elif kind == 2:
            del content[start : start + int(rng.integers(1, 40))]
        elif kind == 3:
            content[start:start] = rng.bytes(int(rng.integers(1, 40)))
        else:
            content = bytearray(whole[paths[(n + 1 + n // 5 % 5) % len(paths)]])
        path.write_bytes(content)
        assert bytes(content) == whole[path] or kept.get(path.parent.name, path.stem[:1] * 64) is None
        path.write_bytes(whole[path])
    assert caplog.text.count("is computed again") == 10_000
    assert all(kept.get(path.parent.name, path.stem[:1] * 64) is not None for path in paths)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_where_nothing_can_be_written_the_work_goes_on(case, caplog, monkeypatch, code):
    def refuses(file, **arrays):
        file.write(b"half")
        raise OSError(code, os.strerror(code))

    bare = segment(case[0], case[1], parse_recipe(TABLES))
    monkeypatch.setattr(cache_module.np, "savez", refuses)
    result, computed = run(case)
    assert computed == ALL and io.content_hash(result.probabilities) == io.content_hash(bare.probabilities)
    assert caplog.text.count("results cannot be cached here") == 1 and os.strerror(code) in caplog.text
    assert not [path for path in case[2].rglob("*") if path.is_file()]


def test_a_file_where_the_folder_should_be(case, caplog):
    case[2].write_text("")
    assert run(case)[1] == ALL
    assert "results cannot be cached here" in caplog.text


def test_what_was_used_longest_ago_is_removed_first(tmp_path):
    kept = Cache(tmp_path)
    for n in range(10):
        kept.put("stage", f"{n}" * 40, np.zeros(1000, np.uint8))
        os.utime(tmp_path / "stage" / f"{str(n) * 40}.entry", (n, n))
    assert kept.get("stage", "0" * 40) is not None  # now it was used last
    size = next(list_entries(tmp_path)).size
    removed = evict(tmp_path, 6 * size)
    left = {entry.path.stem[0] for entry in list_entries(tmp_path)}
    assert removed == 5 and left == {"0", "6", "7", "8", "9"}
    assert clear(tmp_path, ["other"]) == 0 and clear(tmp_path) == 5 and not any(list_entries(tmp_path))


def test_a_limit_holds_while_a_run_goes_on(case):
    run(case)
    total = sum(entry.size for entry in list_entries(case[2]))
    clear(case[2])
    bare = segment(case[0], case[1], parse_recipe(TABLES))
    result, _ = run(case, limit_bytes=total // 3)
    assert sum(entry.size for entry in list_entries(case[2])) <= 1.1 * total // 3
    assert io.content_hash(result.probabilities) == io.content_hash(bare.probabilities)


WRITER = """
import sys
from pathlib import Path
import numpy as np
from atlasseg.store.cache import Cache
kept = Cache(Path(sys.argv[1]), limit_bytes=300_000)
for n in range(60):
    key = f"{n % 7}" * 40
    value = kept.get("stage", key)
    assert value is None or (value == n % 7).all() and value.shape == (20_000,)
    kept.put("stage", key, np.full(20_000, n % 7, np.uint8))
assert kept.writable
"""


def test_several_processes_on_one_folder(tmp_path):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stderr=subprocess.PIPE) for _ in range(3)]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0 and not errors, errors
    left = [path for path in tmp_path.rglob(".*") if path != tmp_path / PARTIAL]
    assert list(find_damaged(tmp_path)) == [] and not left and not list((tmp_path / PARTIAL).iterdir())


def test_data_types_come_back_bit_for_bit():
    rng = np.random.default_rng(3)
    affine = np.diag([-1.0, 2, 1 / 3, 1])
    field = DisplacementField(rng.normal(size=(3, 4, 5, 3)).astype(np.float32), affine)
    spline = BSplineField(rng.normal(size=(4, 5, 6, 3)), affine)
    labels = LabelMap(rng.integers(0, 9, (3, 4, 5)), affine, "l")
    fractions = ProbabilityMap.from_dense(rng.random((3, 4, 5, 3)), [0, 4, 7], affine)
    table = pd.DataFrame({"a": [0.1, np.nan], "b": ["x", None], "c": pd.array([1, None], "Int64"), "d": [3, 4]})
    values = [Affine(affine), Chain((Affine(affine), field, spline)), Inverse(field), labels, fractions, (1, "2", None)]
    for value in values:
        arrays = {}
        again = packing.unpack(packing.pack(value, arrays), arrays)
        assert packing.digest(again) == packing.digest(value) and type(again) is type(value)
    arrays = {}
    pd.testing.assert_frame_equal(packing.unpack(packing.pack(table, arrays), arrays), table)
    with pytest.raises(TypeError, match="Path cannot be packed"):
        packing.pack(Path("x"), {})


def test_digests_tell_contents_apart_and_not_names(tmp_path):
    image = Image(np.arange(60.0).reshape(3, 4, 5), np.eye(4), "a")
    assert packing.digest(image) == packing.digest(replace(image, name="b"))
    assert packing.digest(image) != packing.digest(replace(image, affine=np.diag([2.0, 1, 1, 1])))
    different = [0, 0.0, False, "0", None, (0,), ((0,),), {"a": 0}, np.zeros(1), np.zeros(1, np.float32)]
    assert len({packing.digest(value) for value in different}) == len(different)
    model = tmp_path / "model"
    model.mkdir()
    (model / "a").write_text("1")
    first = packing.digest(model)
    (model / "a").write_text("22")
    assert packing.digest(model) != first


def renewed_version(function, *modules):
    for cached in vars(versions).values():
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()
    return versions.fingerprint(function, *modules)


def test_the_version_of_a_method_follows_its_imports(tmp_path, monkeypatch):
    package = tmp_path / "madeup"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "method.py").write_text("def fuse():\n    from madeup.kernel import x\n    from . import other\n")
    (package / "kernel.py").write_text("import numpy\nimport beside\nx = 1\n")
    (package / "other.py").write_text("")
    (package / "unrelated.py").write_text("")
    (tmp_path / "beside.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    from madeup.method import fuse

    seen = [renewed_version(fuse)]
    (package / "unrelated.py").write_text("y = 2\n")
    assert renewed_version(fuse) == seen[0]
    for file in (package / "kernel.py", package / "other.py", tmp_path / "beside.py"):
        file.write_text(file.read_text() + "z = 2\n")
        seen.append(renewed_version(fuse))
    monkeypatch.setattr(versions, "_installed", lambda library: "another")
    seen.append(renewed_version(fuse))
    assert len(set(seen)) == len(seen)


def test_the_version_of_a_function_made_elsewhere_follows_what_it_holds(tmp_path, monkeypatch):
    (tmp_path / "maker.py").write_text(
        "from functools import partial\n"
        "class Vote:\n"
        "    def __init__(self, power):\n        self.power = power\n"
        "    def __call__(self, target, candidates):\n        return self.power\n"
        "def make(power, inner=None):\n"
        "    def fuse(target, candidates):\n        return power, inner\n"
        "    return fuse\n"
    )
    (tmp_path / "user.py").write_text("import maker\nfuse = maker.make(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    import maker

    made = [
        maker.make(3),
        maker.make(4),
        maker.make(np.arange(3)),
        maker.make(np.arange(1, 4)),
        maker.make(3, maker.make(3)),
        maker.make(3, maker.make(4)),
        maker.make((2, 2)),
        maker.make((2, 1)),
        partial(maker.make(3), 1),
        partial(maker.make(3), 2),
        maker.Vote(3),
        maker.Vote(4),
    ]
    assert len({renewed_version(function) for function in made}) == len(made)
    assert renewed_version(maker.make(3)) == renewed_version(maker.make(3))
    before = renewed_version(made[0], "user")
    (tmp_path / "user.py").write_text("import maker\nfuse = maker.make(3) or 1\n")
    assert renewed_version(made[0], "user") != before


def test_functions_without_a_file_are_told_apart():
    def typed(text):
        scope = {"__name__": "no_such_module"}
        exec(text, scope)
        return scope["fuse"]

    one, other = (typed(f"def fuse(target, candidates):\n    return [{n} for x in target]") for n in (1, 2))
    assert renewed_version(one) != renewed_version(other)
    assert renewed_version(one) == renewed_version(
        typed("def fuse(target, candidates):\n    return [1 for x in target]")
    )


@pytest.mark.parametrize("value", [{3: 0.5, 11: None}, {"3": 0.5}, {(1, 2): frozenset({4})}, {}])
def test_a_mapping_comes_back_with_the_keys_that_it_had(value):
    assert packing.unpack(json.loads(json.dumps(packing.pack(value, {}))), {}) == value
