"""Joint label fusion by torch, for a CUDA GPU: the computations of `_joint_numba` as array operations over slabs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from atlasseg.fusion._encoded_votes import EncodedVotes
from atlasseg.fusion._patches import CONSTANT, TIE, PatchSearch
from atlasseg.volume import Bool, Float32, Int32, Int64

SEARCHED = 1 << 22
"""Maximum of voxels times candidates of one search."""

HELD = 1 << 26
"""Maximum number of elements of the largest array after the search."""


def joint_weights(
    search: PatchSearch,
    candidates: Sequence[Float32],
    inside: Sequence[Bool],
    *,
    alpha: float,
    beta: float,
    nonnegative: bool,
    device: str = "cuda",
) -> tuple[Int32, Float32]:
    """Best offset and weight of each candidate at each voxel: see `atlasseg.fusion._joint_numba.joint_weights`."""
    chosen = np.full((search.voxels.size, len(candidates)), -1, np.int32)
    weights = np.zeros((search.voxels.size, len(candidates)), np.float32)
    for start, stop in _slabs(search.where, SEARCHED // len(candidates)):
        box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        wanted = search.where[box]
        slab = _Slab(search, candidates, inside, start, stop, device)
        shift = slab.best_offsets()
        at = torch.as_tensor(np.argwhere(wanted), device=device)
        rows = search.number[box][wanted]
        size = max(1, HELD // (len(candidates) * slab.patch_numbers))
        for first in range(0, len(at), size):
            part, row = at[first : first + size], rows[first : first + size]
            moves = shift[:, part[:, 0], part[:, 1], part[:, 2]].T
            matrix = slab.error_products(part, moves) ** beta
            solution = minimise(matrix, moves >= 0, alpha, nonnegative)
            chosen[row] = moves.cpu().numpy()
            weights[row] = solution.cpu().numpy()
    return chosen, weights


def _slabs(where: Bool, size: int) -> Iterator[tuple[Int64, Int64]]:
    """Yield boxes of about `size` voxels that contain all of `where`: layers along the first axis."""
    held = [np.flatnonzero(where.any(axis=rest)) for rest in ((1, 2), (0, 2), (0, 1))]
    start, stop = np.array([h[0] for h in held]), np.array([h[-1] + 1 for h in held])
    thickness = max(1, size // int(np.prod((stop - start)[1:])))
    for first in range(start[0], stop[0], thickness):
        yield np.array([first, *start[1:]]), np.array([min(first + thickness, stop[0]), *stop[1:]])


class _Slab:
    """Target and candidates around a box, in double precision."""

    def __init__(
        self,
        search: PatchSearch,
        candidates: Sequence[Float32],
        inside: Sequence[Bool],
        start: Int64,
        stop: Int64,
        device: str,
    ) -> None:
        self.patch = [int(p) for p in search.patch]
        self.window = [int(s) for s in search.window]
        self.offsets = search.offsets
        self.size = [int(n) for n in stop - start]
        self.sides = [2 * p + 1 for p in self.patch]
        self.count = int(np.prod(self.sides))
        self.patch_numbers = self.count * len(search.target)
        self.device = device
        margin = search.patch + search.window
        self.target = self._load(search.target, start - search.patch, stop + search.patch)
        self.values = torch.stack([self._load(each, start - margin, stop + margin) for each in candidates])
        self.target_mean, self.target_scale = self._statistics(self.target)
        self.mean, self.scale = self._statistics(self.values)
        known = [self._reach(each, start - search.window, stop + search.window) for each in inside]
        self.known = torch.as_tensor(np.stack(known), device=device)

    def _load(self, volume: Float32, start: Int64, stop: Int64) -> torch.Tensor:
        index = [np.clip(np.arange(a, b), 0, n - 1) for a, b, n in zip(start, stop, volume.shape[1:], strict=True)]
        return torch.as_tensor(volume[np.ix_(np.arange(len(volume)), *index)], device=self.device).double().contiguous()

    def _reach(self, inside: Bool, start: Int64, stop: Int64) -> Bool:
        index = [np.arange(a, b) for a, b in zip(start, stop, strict=True)]
        on_grid = [(i >= 0) & (i < n) for i, n in zip(index, inside.shape, strict=True)]
        known = inside[np.ix_(*[np.clip(i, 0, n - 1) for i, n in zip(index, inside.shape, strict=True)])]
        reach: Bool = known & on_grid[0][:, None, None] & on_grid[1][:, None] & on_grid[2]
        return reach

    def _statistics(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean, and 1 over the root of the summed squared deviations (0 for a constant patch), of every patch."""
        total, squares = self._box_sums(values), self._box_sums(values * values)
        deviation = squares - total * total / self.count
        constant = deviation <= CONSTANT**2 * squares
        return total / self.count, torch.where(constant, 0.0, torch.where(constant, 1.0, deviation).rsqrt())

    def _box_sums(self, values: torch.Tensor) -> torch.Tensor:
        for axis, side in zip((-3, -2, -1), self.sides, strict=True):
            length = values.shape[axis] - side + 1
            total = values.narrow(axis, 0, length).clone()
            for m in range(1, side):
                total += values.narrow(axis, m, length)
            values = total
        return values

    def best_offsets(self) -> torch.Tensor:
        """(N, i, j, k) int64 row of the best offset, -1 where there is none."""
        n0, n1, n2 = self.size
        best = torch.full((len(self.values), n0, n1, n2), -torch.inf, dtype=torch.float64, device=self.device)
        shift = torch.full(best.shape, -1, dtype=torch.int64, device=self.device)
        for row, offset in enumerate(self.offsets):
            d = [int(o) + s for o, s in zip(offset, self.window, strict=True)]
            around = tuple(slice(a, a + n + 2 * p) for a, n, p in zip(d, self.size, self.patch, strict=True))
            here = tuple(slice(a, a + n) for a, n in zip(d, self.size, strict=True))
            products = self._box_sums(self.target * self.values[:, :, *around])
            products -= self.count * self.target_mean * self.mean[:, :, *here]
            score = (products * self.target_scale * self.scale[:, :, *here]).sum(dim=1)
            better = self.known[:, *here] & (score > best + TIE)
            best = torch.where(better, score, best)
            shift = torch.where(better, row, shift)
        return shift

    def error_products(self, at: torch.Tensor, moves: torch.Tensor) -> torch.Tensor:
        """(V, N, N) mean over the patch of the products of the absolute differences, for V voxels (V, 3) of the box."""
        window = torch.as_tensor(self.window, device=self.device)
        offsets = torch.as_tensor(self.offsets, device=self.device)
        centre = at[:, None, :] + offsets[moves.clamp(min=0)] + window  # (V, N, 3)
        candidate = torch.arange(len(self.values), device=self.device)[None, :]
        own = self._normalise(
            self.target[None], self.target_mean[None], self.target_scale[None], 0 * at[:, :1], at[:, None]
        )
        other = self._normalise(self.values, self.mean, self.scale, candidate.expand(len(at), -1), centre)
        errors = (other - own).abs() * (moves >= 0)[..., None]
        return errors @ errors.transpose(1, 2) / max(self.patch_numbers - 1, 1)

    def _normalise(
        self, values: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor, which: torch.Tensor, at: torch.Tensor
    ) -> torch.Tensor:
        """(V, M, C P) patches, of mean 0 and standard deviation 1, of volume `which` (V, M) that begin at (V, M, 3)."""
        channels, strides = values.shape[1], values.stride()
        step = [torch.arange(side, device=self.device) * s for side, s in zip(self.sides, strides[2:], strict=True)]
        inner = (step[0][:, None, None] + step[1][:, None] + step[2]).reshape(-1)
        c = torch.arange(channels, device=self.device)
        first = which * strides[0] + (at * torch.as_tensor(strides[2:], device=self.device)).sum(-1)
        index = first[..., None, None] + (c * strides[1])[:, None] + inner
        centre = (which[..., None], c, at[..., 0, None], at[..., 1, None], at[..., 2, None])
        spread = scale[centre][..., None] * max(self.count - 1, 1) ** 0.5
        patches: torch.Tensor = (values.reshape(-1)[index] - mean[centre][..., None]) * spread
        return patches.flatten(2)


def minimise(matrix: torch.Tensor, used: torch.Tensor, alpha: float, nonnegative: bool) -> torch.Tensor:
    """(V, N) weights of the candidates that are `used`: see `atlasseg.fusion._joint_numba.minimise`."""
    matrix = matrix + alpha * torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    weights = _solve(matrix, used)
    open_ = (weights < 0).any(dim=1)
    weights = weights.clamp(min=0)
    if nonnegative and bool(open_.any()):
        weights[open_] = _active_set(matrix[open_], used[open_], weights[open_])
    total = weights.sum(dim=1, keepdim=True)
    return weights / torch.where(total > 0, total, 1)


def _solve(matrix: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    """Solve M x = 1 for the rows and columns that are `held` (V, N); x is 0 elsewhere."""
    both = held[:, :, None] & held[:, None, :]
    eye = torch.eye(matrix.shape[-1], dtype=torch.bool, device=matrix.device)
    kept = torch.where(both, matrix, 0.0) + (eye & ~held[:, :, None]).to(matrix.dtype)
    factor, failed = torch.linalg.cholesky_ex(kept)
    if bool(failed.any()):  # singular to the last digit
        jitter = 1e-12 * torch.diagonal(kept, dim1=1, dim2=2).amax(dim=1)[:, None, None]
        factor = torch.linalg.cholesky(kept + jitter * eye)
    return torch.cholesky_solve(held.to(matrix.dtype)[:, :, None], factor)[:, :, 0]


def _active_set(matrix: torch.Tensor, used: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Minimise v' M v / 2 - 1' v over v >= 0, all problems side by side, from feasible weights."""
    out = weights.clone()
    waiting = torch.arange(len(out), device=out.device)
    v, held = weights.clone(), weights > 0
    for _ in range(20 * matrix.shape[-1]):
        trial = _solve(matrix, held)
        blocked = held & (trial <= 0)
        ratio = torch.where(blocked, v / torch.where(blocked, v - trial, 1), torch.inf)
        step = ratio.amin(dim=1, keepdim=True).clamp(max=1)
        stuck = blocked.any(dim=1)
        v = torch.where(held, v + step * (trial - v), 0.0)
        leaving = blocked & (ratio <= step) | held & stuck[:, None] & (v <= 1e-15)
        held = held & ~leaving
        v = torch.where(held, v, 0.0)
        gradient = 1 - (matrix @ v[:, :, None])[:, :, 0]
        gradient = torch.where(used & ~held, gradient, -torch.inf)
        most, entering = gradient.max(dim=1)
        enters = ~stuck & (most > 1e-9)
        held = held | enters[:, None] & (torch.arange(held.shape[1], device=held.device) == entering[:, None])
        done = ~stuck & ~enters
        out[waiting[done]] = v[done]
        going = ~done
        if not bool(going.any()):
            return out
        waiting, v, held, matrix, used = waiting[going], v[going], held[going], matrix[going], used[going]
    out[waiting] = v
    return out


def count_votes(
    search: PatchSearch, chosen: Int32, weights: Float32, encoded: EncodedVotes, voxels: Int64, *, device: str = "cuda"
) -> tuple[Int64, Int32, Float32]:
    """Votes at each voxel: see `atlasseg.fusion._joint_numba.count_votes`."""
    groups, labels = encoded.unknown.shape
    number = np.pad(search.number, [(p, p) for p in search.patch], constant_values=-1)
    window = np.argwhere(np.ones(2 * search.patch + 1, bool)) - search.patch
    strides = np.array([number.shape[1] * number.shape[2], number.shape[2], 1])
    box = encoded.codes.shape[1:]
    box_strides = np.array([box[1] * box[2], box[2], 1])
    index = np.stack(np.unravel_index(voxels, search.where.shape), axis=-1)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(np.ascontiguousarray(array), device=device)

    numbers, near = tensor(number.reshape(-1)), (window @ strides).tolist()
    codes = tensor(encoded.codes.reshape(len(encoded.codes), -1))
    moves, weight_of = tensor(search.offsets @ box_strides)[tensor(chosen).long()], tensor(weights).double()
    lists = tensor(encoded.lists.offsets), tensor(encoded.lists.labels).long(), tensor(encoded.lists.values).double()
    counts, slots, values = [], [], []
    size = max(1, HELD // (2 * groups * labels))
    for first in range(0, voxels.size, size):
        part = index[first : first + size]
        at_number, at_code = tensor((part + search.patch) @ strides), tensor((part - encoded.start) @ box_strides)
        votes = torch.zeros((len(part), groups * labels), dtype=torch.float64, device=device)
        for step in near:
            row = numbers[at_number + step]
            for n in range(
                len(codes)
            ):  # one candidate at a time: no two votes meet in one sum, so their order is fixed
                weight = torch.where(row >= 0, weight_of[row, n], 0.0)
                code = codes[n][torch.where(weight > 0, at_code + moves[row, n], 0)].long()
                _cast(votes, torch.where(code >= 0, weight, 0.0), code.clamp(min=0), lists)
        if encoded.unknown.any():
            votes = _share_out(votes, encoded)
        total = votes.sum(dim=1, keepdim=True)
        share = (votes / torch.where(total > 0, total, 1)).float()
        entry = torch.nonzero(share > 0)
        counts.append((share > 0).sum(dim=1).cpu().numpy())
        slots.append(entry[:, 1].int().cpu().numpy())
        values.append(share[share > 0].cpu().numpy())
    return np.concatenate(counts), np.concatenate(slots), np.concatenate(values)


def _cast(
    votes: torch.Tensor,
    weight: torch.Tensor,
    code: torch.Tensor,
    lists: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """Add one candidate's vote at each voxel: for a slot, or for the slots of a list."""
    offsets, list_slots, fractions = lists
    slots = votes.shape[1]
    single = code < slots
    votes.scatter_add_(1, torch.where(single, code, 0)[:, None], torch.where(single, weight, 0.0)[:, None])
    if bool(single.all()):
        return
    of_list = torch.nonzero(~single)[:, 0]
    begin, end = offsets[code[of_list] - slots], offsets[code[of_list] - slots + 1]
    for e in range(int((end - begin).max())):
        going = begin + e < end
        of_list, begin, end = of_list[going], begin[going], end[going]
        votes[of_list, list_slots[begin + e]] += weight[of_list] * fractions[begin + e]


def _share_out(votes: torch.Tensor, encoded: EncodedVotes) -> torch.Tensor:
    """(V, L) votes of all groups, with uncertain background votes distributed: see `_joint_numba._share_out`."""
    groups, labels = encoded.unknown.shape
    background = int(np.searchsorted(encoded.label_values, 0))
    of_group = votes.reshape(-1, groups, labels)
    shared = of_group.sum(dim=1)
    for group in np.flatnonzero(encoded.unknown.any(axis=1)):
        open_to = encoded.unknown[group].copy()
        open_to[background] = True
        knowing = ~(encoded.unknown & encoded.unknown[group]).any(axis=1)
        known = of_group[:, torch.as_tensor(knowing, device=votes.device)].sum(dim=1)
        known = known * torch.as_tensor(open_to, device=votes.device)
        total = known.sum(dim=1, keepdim=True)
        vague = torch.where(total > 0, of_group[:, group, background, None], 0.0)
        shared += vague * known / torch.where(total > 0, total, 1)
        shared[:, background] -= vague[:, 0]
    return shared.clamp(min=0)
