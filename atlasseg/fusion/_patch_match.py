"""Approximate nearest patches by PatchMatch (Barnes 2009; for label fusion Giraud 2016)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from atlasseg.fusion._patches import NearestPatches, list_offsets
from atlasseg.threads import run_slices
from atlasseg.volume import Bool, Float32


def run_patch_match(
    target: Float32,
    candidates: Sequence[Float32],
    where: Bool,
    *,
    count: int,
    patch_radius_voxels: int,
    search_radius_voxels: int,
    inside: Sequence[Bool | None],
    iterations: int,
    seed: int,
) -> NearestPatches:
    """Find `count` similar patches for the target's patch at each voxel, by `count` independent runs of PatchMatch.

    Every run begins with a random candidate and offset. Each iteration tries the matches of its six neighbours from the
    iteration before (propagation), a random offset in the window of a random candidate, and random offsets of its own
    candidate in boxes of halving size around the best match (random search). All voxels are updated together from the
    iteration before, so the result does not depend on the number of threads.

    Parameters
    ----------
    target, candidates, where, count, inside
        As for `find_nearest_patches` with squared differences.
    patch_radius_voxels, search_radius_voxels : int
        Radius of a patch, and of the search window.
    iterations : int
        Number of sweeps.
    seed : int
        Seed. The random numbers are functions of seed, voxel, run, iteration and number of the draw.

    Returns
    -------
    NearestPatches
        Nearest first. The same patch may occur several times.
    """
    radius = patch_radius_voxels
    offsets = list_offsets(search_radius_voxels)
    row_of = np.empty([2 * search_radius_voxels + 1] * 3, np.int32)
    row_of[tuple((offsets + search_radius_voxels).T)] = np.arange(len(offsets))
    margin = [(0, 0)] + [(radius, radius)] * 3
    library = np.stack([np.pad(candidate, margin, mode="edge") for candidate in candidates])
    scan = np.pad(target, margin, mode="edge")
    known = np.stack([np.ones(where.shape, bool) if mask is None else mask for mask in inside])
    voxels = np.flatnonzero(where)
    number = np.full(where.size, -1, np.int64)
    number[voxels] = np.arange(voxels.size)
    place = np.stack(np.unravel_index(voxels, where.shape), axis=1)
    near = np.full((voxels.size, 6), -1, np.int64)
    for n in range(6):
        axis, step = divmod(n, 2)
        there = place.copy()
        there[:, axis] += 2 * step - 1
        valid = (there[:, axis] >= 0) & (there[:, axis] < where.shape[axis])
        near[valid, n] = number[np.ravel_multi_index(tuple(there[valid].T), where.shape)]

    which = np.full((voxels.size, count), -1, np.int32)
    chosen = np.full((voxels.size, count), -1, np.int32)
    distance = np.full((voxels.size, count), np.inf)
    arrays = (scan, library, known, voxels, place, near, offsets, row_of, search_radius_voxels, radius)
    for iteration in range(iterations + 1):
        found = which.copy(), chosen.copy(), distance.copy()
        draws = np.uint64(seed), np.uint64(iteration)
        run_slices(_step, voxels.size, *arrays, which, chosen, distance, *draws, *found)
        which, chosen, distance = found
    order = np.argsort(distance, axis=1, kind="stable")
    which, chosen, distance = (np.take_along_axis(part, order, axis=1) for part in (which, chosen, distance))
    return NearestPatches(voxels, offsets, which, chosen, -distance)


@njit(cache=True)
def _random(key, draw):  # type: ignore[no-untyped-def]
    """A random 64-bit number, splitmix64 of key and number of the draw."""
    x = key + np.uint64(draw + 1) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True)
def _squared_difference(scan, candidate, x, y, z, a, b, c, radius, least):  # type: ignore[no-untyped-def]
    """Summed over a patch, or infinity as soon as it is not below `least`."""
    width = 2 * radius + 1
    total = 0.0
    for channel in range(scan.shape[0]):
        for i in range(width):
            for j in range(width):
                for k in range(width):
                    apart = np.float64(scan[channel, x + i, y + j, z + k]) - candidate[channel, a + i, b + j, c + k]
                    total += apart * apart
            if total >= least:
                return np.inf
    return total


@njit(cache=True, nogil=True)
def _step(  # type: ignore[no-untyped-def]
    start, stop, scan, library, known, voxels, place, near, offsets, row_of, window, radius, which, chosen, distance,
    seed, iteration, new_which, new_chosen, new_distance,
):  # fmt: skip
    shape = known.shape[1:]
    n = library.shape[0]
    side = 2 * window + 1
    for m in range(start, stop):
        x, y, z = place[m]
        for run in range(which.shape[1]):
            key = _random(_random(_random(seed, voxels[m]), run), np.int64(iteration))
            best, row, least = which[m, run], chosen[m, run], distance[m, run]
            draw = 0
            size = window
            trial = 0
            while True:
                # trials 0 to 5: the neighbours'; 6: anywhere; then around the best, in shrinking boxes
                if trial < 6:
                    other = near[m, trial]
                    trial += 1
                    if other < 0 or which[other, run] < 0:
                        continue
                    i, o = np.int64(which[other, run]), np.int64(chosen[other, run])
                elif trial == 6 or best < 0:
                    if trial > 6 + side:
                        break
                    i = np.int64(_random(key, draw) % np.uint64(n))
                    o = np.int64(_random(key, draw + 1) % np.uint64(offsets.shape[0]))
                    draw += 2
                    trial += 1
                else:
                    if size < 1:
                        break
                    i = np.int64(best)
                    o0 = offsets[row, 0] + np.int64(_random(key, draw) % np.uint64(2 * size + 1)) - size
                    o1 = offsets[row, 1] + np.int64(_random(key, draw + 1) % np.uint64(2 * size + 1)) - size
                    o2 = offsets[row, 2] + np.int64(_random(key, draw + 2) % np.uint64(2 * size + 1)) - size
                    draw += 3
                    size //= 2
                    if max(abs(o0), abs(o1), abs(o2)) > window:
                        continue
                    o = np.int64(row_of[o0 + window, o1 + window, o2 + window])
                a, b, c = x + offsets[o, 0], y + offsets[o, 1], z + offsets[o, 2]
                if a < 0 or b < 0 or c < 0 or a >= shape[0] or b >= shape[1] or c >= shape[2]:
                    continue
                if not known[i, a, b, c]:
                    continue
                apart = _squared_difference(scan, library[i], x, y, z, a, b, c, radius, least)
                if apart < least:
                    best, row, least = np.int32(i), np.int32(o), apart
            new_which[m, run], new_chosen[m, run], new_distance[m, run] = best, row, least
