"""Recommendation of a recipe for a library: candidate settings, and their search by successive halving."""

from atlasseg.recommendation.candidates import Setting, list_fusions, list_registrations
from atlasseg.recommendation.halving import Search, search
from atlasseg.recommendation.properties import LibraryProperties, describe_properties

__all__ = [
    "LibraryProperties",
    "Search",
    "Setting",
    "describe_properties",
    "list_fusions",
    "list_registrations",
    "search",
]
