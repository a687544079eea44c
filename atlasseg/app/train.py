"""Training and pre-training of the refinement network."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from atlasseg import io
from atlasseg.app.context import training_library
from atlasseg.app.outputs import software_versions
from atlasseg.app.registrar import make_registrar
from atlasseg.atlases.library import read_targets
from atlasseg.device import Device, resolve_device
from atlasseg.errors import InputError
from atlasseg.pipeline import preprocess
from atlasseg.recipe import Recipe
from atlasseg.refinement.examples import count_channels, mean_spacing_mm
from atlasseg.store.cache import Cache
from atlasseg.training import train_refiner

if TYPE_CHECKING:
    from atlasseg.refinement.network.model import RefinerModel
    from atlasseg.training.correcting import Start

__all__ = ["train"]


def train(
    recipe: Recipe,
    out: Path,
    *,
    without: Collection[str] = (),
    init: Path | None = None,
    freeze_encoder: bool = False,
    memory_bytes: float | None = None,
    step_flops: float | None = None,
    cache: Path | None = None,
    device: Device = "auto",
    progress: Callable[[str], None] = lambda text: None,
) -> RefinerModel:
    """Train the refiner on the library of a recipe and write the model into `out`.

    Checkpoints and intermediate results are stored in ``OUT.work`` until the model is written, so an interrupted
    training is resumed by the same call.

    Parameters
    ----------
    recipe : Recipe
        Recipe with `data.atlases`.
    out : path
        Folder for the model.
    without : collection of str
        Atlases to leave out, such as those that the model will be evaluated on.
    init : path, optional
        Model of the same architecture with initial weights; weights of matching shape are used.
    freeze_encoder : bool
        Keep the encoder of `init` unchanged.
    memory_bytes : float, optional
        Memory limit of a training step in bytes; by default four fifths of the memory of a GPU.
    step_flops : float, optional
        Maximum number of floating point operations of a training step.
    cache : path, optional
        Cache folder; by default a folder in ``OUT.work``.
    device : str
        "auto", "cpu" or "cuda".
    progress : callable, optional
        Called with the name of each step when it starts.

    Returns
    -------
    RefinerModel
        The model that was written.

    Raises
    ------
    InputError
        There is no library, or an atlas in `without` does not exist; or as for `training.train_refiner`.
    OutputError
        The model cannot be written.
    """
    from atlasseg.refinement.network import require_libraries
    from atlasseg.refinement.network.model import check_free, write_model

    require_libraries()
    library = training_library(recipe, without)
    where = resolve_device(device)
    check_free(out)
    recipe, begun = load_initial_weights(recipe, init, freeze_encoder)
    work = out.parent / f"{out.name}.work"
    executor = Cache(cache or work / "cache")
    with graceful_interrupt() as stop:
        model = train_refiner(
            [library.read(id_) for id_ in library.ids],
            recipe,
            device=where,
            memory_bytes=memory_bytes,
            step_flops=step_flops,
            start=begun,
            versions=software_versions(),
            checkpoints=work,
            registrar=make_registrar(recipe, library, executor),
            executor=executor,
            progress=progress,
            stop=stop,
        )
    write_model(model, out, table=library.table)
    shutil.rmtree(work, ignore_errors=True)
    return model


def load_initial_weights(recipe: Recipe, init: Path | None, freeze_encoder: bool) -> tuple[Recipe, Start | None]:
    """Load initial weights from a model, and set the depth and width of its network in the recipe.

    Raises
    ------
    InputError
        The model cannot be read, its architecture differs from the recipe, or there is no encoder to freeze.
    """
    if init is None:
        if freeze_encoder:
            raise InputError("--freeze encoder: expected a model with this encoder. Give it with --init")
        return recipe, None
    from atlasseg.refinement.network.model import best_of, read_model
    from atlasseg.training.correcting import Start

    model = read_model(init)
    for name in ("architecture", "levels", "width"):
        wanted, there = getattr(recipe.refiner, name), getattr(model.form, name)
        if wanted not in (None, there):
            raise InputError(f"{init}: its {name} is {there}, but the recipe's [refiner] {name} is {wanted}")
    taken = replace(recipe.refiner, levels=model.form.levels, width=model.form.width)
    return replace(recipe, refiner=taken), Start(
        best_of(model).weights, freeze_encoder, model.coding, model.channels, {**model.initial_atlases, **model.atlases}
    )


@contextmanager
def graceful_interrupt() -> Iterator[Callable[[], bool]]:
    """Report whether Ctrl-C was pressed; a second Ctrl-C interrupts at once. Works only in the main thread."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.getsignal(signal.SIGINT)

    def hear(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    signal.signal(signal.SIGINT, hear)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def pretrain(
    recipe: Recipe,
    out: Path,
    *,
    memory_bytes: float | None = None,
    step_flops: float | None = None,
    device: Device = "auto",
    progress: Callable[[str], None] = lambda text: None,
) -> RefinerModel:
    """Pre-train the network of a recipe on unlabelled scans (`data.targets`), for `init` of `train`.

    Parameters as for `train`.

    Raises
    ------
    InputError
        There are too few scans, or they differ in channels; or no network fits the budget.
    OutputError
        The model cannot be written.
    """
    from atlasseg.refinement.network import require_libraries
    from atlasseg.refinement.network.cases import LabelEncoding, standardise
    from atlasseg.refinement.network.model import RefinerModel, check_free, write_model
    from atlasseg.training.budget import budget
    from atlasseg.training.planning import plan
    from atlasseg.training.pretraining import fit_reconstruction

    require_libraries()
    where = resolve_device(device)
    check_free(out)
    targets = read_targets(recipe.data.targets, **recipe.data.reading)
    images = [preprocess(target.read()[0], recipe.preprocessing.steps) for target in targets]
    by_id = dict(zip((target.id for target in targets), images, strict=True))
    count = count_channels(by_id)
    scans = [standardise(image) for image in images]
    memory, flops = budget(where, memory_bytes, step_flops)
    planned = plan(
        recipe.refiner,
        inputs=count,
        outputs=count,
        sizes=[scan.shape[1:] for scan in scans],
        batch=recipe.training.batch,
        memory_bytes=memory,
        flops=flops,
    )
    progress(f"plan: {planned.text()}")
    work = out.parent / f"{out.name}.work"
    with graceful_interrupt() as stop:
        member = fit_reconstruction(
            scans,
            planned,
            recipe.training,
            device=where,
            checkpoint=work / "pretraining.safetensors",
            progress=progress,
            stop=stop,
        )
    model = RefinerModel(
        planned.form,
        LabelEncoding((0,), (0,)),
        "none",
        1,
        planned.patch_voxels,
        count,
        mean_spacing_mm(image.affine for image in images),
        (),
        (member,),
        {},
        {
            "recipe": recipe.text,
            "versions": software_versions(),
            "plan": planned.text(),
            "data": {id_: io.content_hash(image, place=False) for id_, image in by_id.items()},
            "training": asdict(recipe.training),
        },
    )
    write_model(model, out)
    shutil.rmtree(work, ignore_errors=True)
    return model
