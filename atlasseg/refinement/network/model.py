"""A trained refiner as a folder: weights, label table, training curves and model card. Reading it runs no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlasseg import io
from atlasseg.errors import InputError, OutputError
from atlasseg.files import atomic_directory, check_seal, seal
from atlasseg.labels import LabelTable
from atlasseg.refinement.examples import scan_digests
from atlasseg.refinement.network import require_libraries
from atlasseg.refinement.network.cases import LabelEncoding

if TYPE_CHECKING:
    from torch import Tensor

    from atlasseg.refinement.network.networks import Form

__all__ = ["Member", "RefinerModel", "read_model", "write_model"]

FORMAT = 2
METHOD = "unet"
HEADER, TABLE, CARD, CURVES, PICTURE = "model.json", "labels.tsv", "README.md", "curves.tsv", "curves.png"


@dataclass(frozen=True, eq=False)
class Member:
    """A trained network: weights, temperature, training curve and validation scores.

    Parameters
    ----------
    weights : mapping of str to Tensor
        Weights.
    temperature : float
        Temperature of the calibration.
    curve : sequence of mapping
        Training curve: one row per validation.
    scores : mapping of str to float
        Validation scores.
    """

    weights: dict[str, Tensor]
    temperature: float
    curve: tuple[dict[str, float], ...]
    scores: dict[str, float]


@dataclass(frozen=True, eq=False)
class RefinerModel:
    """Networks, and the properties that a scan and a recipe must share with the training.

    Parameters
    ----------
    form : Form
        Settings of the networks.
    coding : LabelEncoding
        Codes of the labels.
    prior : str
        See `recipe.training.Refiner`.
    candidates : int
        Number of labels per voxel that are inputs.
    patch_voxels : (3,) int
        Along the patient's axes.
    channels : int
        Of the scans.
    spacing_mm : (3,) float
        Mean voxel size of the scans along the patient's axes.
    flips : tuple of str
        Axes that were flipped in training.
    members : tuple of Member
        The networks.
    provenance : mapping
        See `pipeline.provenance`.
    record : mapping
        For information: recipe, versions, hashes of the data, settings.
    """

    form: Form
    coding: LabelEncoding
    prior: str
    candidates: int
    patch_voxels: tuple[int, int, int]
    channels: int
    spacing_mm: tuple[float, float, float]
    flips: tuple[str, ...]
    members: tuple[Member, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def atlases(self) -> dict[str, str]:
        """Digest of the scan of each training atlas, by id."""
        return scan_digests(self.provenance)

    @property
    def initial_atlases(self) -> dict[str, str]:
        """Digest of the scan of each training atlas of the initial model and its initial models, by id."""
        return dict(self.record.get("begun_from", {}))


def weights_name(number: int) -> str:
    """File name of a member's weights."""
    return f"member_{number}.safetensors"


def check_free(folder: Path) -> None:
    """Check that a model may be written to `folder`: it does not exist, is empty, or is a model to replace.

    Raises
    ------
    OutputError
        The folder has other contents.
    """
    if folder.exists() and not (folder / HEADER).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(
            f"{folder}: expected a new folder or a model, got another folder. Give another name, or remove it."
        )


def write_model(model: RefinerModel, folder: str | Path, *, table: LabelTable | None = None) -> None:
    """Write a model into a folder. The folder is written atomically.

    Parameters
    ----------
    model : RefinerModel
        The model.
    folder : path
        Folder of the model.
    table : LabelTable, optional
        Names of the labels.

    Raises
    ------
    OutputError
        The folder cannot be written, or has other contents.
    """
    from atlasseg.refinement.network.tensors import write_tensors

    folder = Path(folder)
    check_free(folder)
    completed = (table or LabelTable()).completed(model.coding.labels)
    with atomic_directory(folder) as aside:
        for number, member in enumerate(model.members):
            path = aside / weights_name(number)
            write_tensors(path, member.weights, {"method": METHOD, "member": number})
        header = {
            "format": FORMAT,
            "method": METHOD,
            "form": asdict(model.form),
            "coding": asdict(model.coding),
            "prior": model.prior,
            "candidates": model.candidates,
            "patch_voxels": model.patch_voxels,
            "channels": model.channels,
            "spacing_mm": model.spacing_mm,
            "flips": model.flips,
            "members": [{"temperature": m.temperature, "scores": m.scores} for m in model.members],
            "provenance": dict(model.provenance),
            "record": dict(model.record),
        }
        io.write_json(header, aside / HEADER)
        io.write_label_table(completed, aside / TABLE)
        if model.record.get("recipe"):
            io.write_text(str(model.record["recipe"]), aside / "recipe.toml")
        rows = [{"member": n, **row} for n, member in enumerate(model.members) for row in member.curve]
        io.write_tsv(rows, aside / CURVES)
        _draw_curves(model, aside / PICTURE)
        io.write_text(card(model, completed), aside / CARD)
        seal(aside, [HEADER, TABLE, *map(weights_name, range(len(model.members)))])


def read_model(folder: str | Path) -> RefinerModel:
    """Read a model written by `write_model`.

    Parameters
    ----------
    folder : path
        Folder of the model.

    Returns
    -------
    RefinerModel

    Raises
    ------
    InputError
        There is no model, it has another format, or a file is damaged or belongs to another model. The message names
        the file.
    MissingLibraryError
        The libraries of the network are not installed.
    """
    folder = Path(folder)
    require_libraries()
    header = folder / HEADER
    if not header.is_file():
        raise InputError(f"{folder}: expected a model of the refiner, got none. Train one with atlasseg train.")
    files = (header, *sorted(folder.glob("*.safetensors")))
    return _read(folder, tuple(path.stat().st_mtime_ns for path in files))


@lru_cache(maxsize=2)
def _read(folder: Path, stamp: tuple[int, ...]) -> RefinerModel:
    """Read the model of a folder whose files were last changed at `stamp`; cached for many targets."""
    from atlasseg.refinement.network.networks import Form

    check_seal(folder, [HEADER, TABLE], remedy="train the model again")
    header = io.read_json(folder / HEADER)
    if (header.get("method"), header.get("format")) != (METHOD, FORMAT):
        raise InputError(
            f"{folder / HEADER}: expected a model of {METHOD!r} in format {FORMAT}, got one of "
            f"{header.get('method')!r} in format {header.get('format')!r}"
        )
    try:
        form = Form(**header["form"])
        coding = LabelEncoding(tuple(map(int, header["coding"]["labels"])), tuple(map(int, header["coding"]["groups"])))
        members = tuple(
            Member(
                _weights(folder / weights_name(number), form), float(member["temperature"]), (), dict(member["scores"])
            )
            for number, member in enumerate(header["members"])
        )
        return RefinerModel(
            form,
            coding,
            str(header["prior"]),
            int(header["candidates"]),
            tuple(map(int, header["patch_voxels"])),  # type: ignore[arg-type]
            int(header["channels"]),
            tuple(map(float, header["spacing_mm"])),  # type: ignore[arg-type]
            tuple(map(str, header["flips"])),
            members,
            header["provenance"],
            header["record"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder}: expected a model, got a damaged one ({error!r}). Train it again.") from error


def _weights(path: Path, form: Form) -> dict[str, Tensor]:
    """Read the weights of a file, and check that they belong to the network."""
    import torch

    from atlasseg.refinement.network.networks import build, load_weights
    from atlasseg.refinement.network.tensors import read_tensors

    weights, _ = read_tensors(path)
    with torch.random.fork_rng(devices=[]):
        load_weights(build(form), weights, str(path))
    return weights


def best_of(model: RefinerModel) -> Member:
    """The member with the best validation score."""
    return max(model.members, key=lambda member: member.scores.get("validation_dice", 0.0))


def _draw_curves(model: RefinerModel, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for number, member in enumerate(model.members):
        steps = [row["step"] for row in member.curve]
        colour = f"C{number % 10}"
        left.plot(steps, [row["training_loss"] for row in member.curve], colour, label=f"network {number + 1}")
        for key in ("validation_dice", "validation_loss"):
            if member.curve and key in member.curve[0]:
                right.plot(steps, [row[key] for row in member.curve], colour)
                right.set_title(key.replace("_", " "))
        if "fused_dice" in member.scores:
            right.axhline(member.scores["fused_dice"], color=colour, linestyle=":")
    if any("fused_dice" in member.scores for member in model.members):
        right.plot([], [], "k:", label="fusion alone")
        right.legend(frameon=False)
    left.set_title("training loss")
    left.legend(frameon=False)
    for axes in (left, right):
        axes.set_xlabel("step")
    figure.savefig(path, dpi=120)


def card(model: RefinerModel, table: LabelTable) -> str:
    """Write the model card of a model in Markdown [1]_.

    References
    ----------
    .. [1] Mitchell, M., Wu, S., Zaldivar, A., et al. (2019). Model cards for model reporting. FAT*, 220-229.
    """
    if model.coding.labels == (0,):
        return _pretrained_card(model)
    names = ", ".join(f"{value} {table.name(value)}" for value in model.coding.labels if value)
    columns = ("steps", "seconds", "fused_dice", "validation_dice")
    rows = [
        " | ".join([f"| {n}", *(f"{m.scores.get(c, float('nan')):.5g}" for c in columns), f"{m.temperature:.3f} |"])
        for n, m in enumerate(model.members, 1)
    ]
    return (
        "# A refiner of atlasseg\n\n"
        "Corrects segmentations that were fused from atlases. Use it for scans like the training scans, fused by "
        "the same recipe. It is not a medical device.\n\n"
        f"- Fused probabilities: {model.prior}; labels: {names}\n{_made(model)}"
        "## Validation\n\nMean Dice on the validation fold of each network, before and after refinement. Probabilities "
        "are calibrated by the temperature.\n\n"
        "| network | steps | seconds | fused | refined | temperature |\n|---|---|---|---|---|---|\n"
        + "\n".join(rows)
        + f"\n\n{_data(model)}"
    )


def _pretrained_card(model: RefinerModel) -> str:
    (member,) = model.members
    return (
        "# A pre-trained network of atlasseg\n\n"
        "Pre-trained by masked reconstruction, without labels. Use it with `atlasseg train --init`.\n\n"
        f"{_made(model)}"
        f"## Validation\n\nError in masked blocks: {member.scores['validation_loss']:.5g} of the variance, after "
        f"{member.scores['steps']:g} steps.\n\n{_data(model)}"
    )


def _made(model: RefinerModel) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in model.record.get("versions", {}).items())
    spacing = " x ".join(f"{s:.3g}" for s in model.spacing_mm)
    return (
        f"- Network: {model.record.get('plan', model.form.architecture)}\n"
        f"- Scans: {model.channels} channel(s), voxels of {spacing} mm (right, anterior, superior)\n"
        f"- Made with {versions or 'atlasseg'}\n\n"
    )


def _data(model: RefinerModel) -> str:
    lines = [f"- `{id_}`: {digest}" for id_, digest in model.record.get("data", {}).items()]
    others = model.initial_atlases
    if others:
        lines.append(f"\nIts initial weights are from a model trained on {', '.join(f'`{id_}`' for id_ in others)}.")
    text = "\n".join(lines)
    return f"![curves]({PICTURE})\n\n## Data\n\nTraining scans, with digests of their voxels:\n\n{text}\n"
