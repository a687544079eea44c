"""What makes a fused segmentation better: a file that defines ``refine(target, fused, *, ...) -> ProbabilityMap``."""
