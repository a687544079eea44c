"""Before registration: bias field, intensities, foreground, crop. A file with a function `preprocess` is a method."""
