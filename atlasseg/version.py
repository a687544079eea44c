"""The version of atlasseg."""

__version__ = "0.2.0"  # the one place that holds it: the build reads it from here
