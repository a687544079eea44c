"""Finding the transform from a fixed image to each moving one. A file with a function `register` is a method."""
