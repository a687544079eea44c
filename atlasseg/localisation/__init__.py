"""Localisation of a small organ in a large view, before registration: the stage ``localisation`` of a recipe."""

from atlasseg.localisation._neighbourhood import surroundings as surroundings
from atlasseg.localisation.result import AtlasPose, OrganLocation, Place

__all__ = ["AtlasPose", "OrganLocation", "Place"]
