"""Export of networks to TorchScript for other programs, with a test of the exported network."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from atlasseg.errors import OutputError
from atlasseg.files import atomic_write
from atlasseg.refinement.network.model import RefinerModel
from atlasseg.refinement.network.networks import build, load_weights

__all__ = ["write_torchscript"]

SAME = 1e-4
"""Maximum difference between the outputs of a network and its export, relative to the largest value."""


def write_torchscript(model: RefinerModel, folder: Path) -> list[Path]:
    """Write each network as ``member_N.ts``: inputs (B, inputs, patch) to the correction of log probabilities.

    Parameters
    ----------
    model : RefinerModel
        The model.
    folder : Path
        Output folder.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    OutputError
        An export cannot be written, or its output differs from that of the network.
    """
    generator = torch.Generator().manual_seed(0)
    written = []
    for number, member in enumerate(model.members):
        with torch.random.fork_rng(devices=[]):
            network = build(model.form)
        load_weights(network, member.weights, "model")
        network.eval()
        shown, other = (torch.randn((1, model.form.inputs, *model.patch_voxels), generator=generator) for _ in range(2))
        path = folder / f"member_{number}.ts"
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about shapes fixed by the trace, and deprecation of TorchScript
            traced = torch.jit.trace(network, shown)  # type: ignore[no-untyped-call]
            with atomic_write(path) as aside:
                traced.save(str(aside))
                expected, found = network(other), torch.jit.load(str(aside))(other)  # type: ignore[no-untyped-call]
                apart = float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-6))
                if not apart <= SAME:
                    raise OutputError(f"expected the outputs of the network, got a relative difference of {apart:.2g}")
        written.append(path)
    return written
