"""Fusion: candidates (atlases on the target's grid) become one map of label probabilities.

Every file here whose name has no leading underscore is a method:
``fuse(target, candidates, *, ...) -> ProbabilityMap``.
"""
