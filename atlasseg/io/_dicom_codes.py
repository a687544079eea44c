"""Coded terms of structures in DICOM data sets."""

from __future__ import annotations

from typing import Any

from atlasseg.errors import InputError
from atlasseg.terminology import ANATOMICAL_STRUCTURE, UNSPECIFIED, Code, Terminology


def read_terminology(item: Any | None, type_keyword: str) -> Terminology | None:
    """Read the coded terms of a structure from an item; None if it has none.

    Parameters
    ----------
    item : pydicom.Dataset or None
    type_keyword : str
        Keyword of the sequence that holds the type.
    """
    if item is None:
        return None
    kind, type_item = _read_code(item, type_keyword)
    if kind is None:
        return None
    category, _ = _read_code(item, "SegmentedPropertyCategoryCodeSequence")
    modifier, _ = _read_code(type_item, "SegmentedPropertyTypeModifierCodeSequence")
    region, region_item = _read_code(item, "AnatomicRegionSequence")
    region_modifier, _ = _read_code(region_item, "AnatomicRegionModifierSequence")
    found = Terminology(category or ANATOMICAL_STRUCTURE, kind, modifier, region, region_modifier)
    return None if found == UNSPECIFIED else found


def make_code(code: Code) -> Any:
    """Make the data set of a code."""
    import pydicom

    item = pydicom.Dataset()
    setattr(item, "CodeValue" if len(code.value) <= 16 else "LongCodeValue", code.value)
    item.CodingSchemeDesignator, item.CodeMeaning = code.scheme, code.meaning
    return item


def _read_code(item: Any | None, keyword: str) -> tuple[Code | None, Any | None]:
    """First code of a sequence and its item; None if it is missing or invalid."""
    found = (item.get(keyword) or ()) if item is not None else ()
    if not found:
        return None, None
    first = found[0]
    value = first.get("CodeValue") or first.get("LongCodeValue") or ""
    try:
        meaning = " ".join(str(first.get("CodeMeaning") or value).split())
        return Code(str(first.get("CodingSchemeDesignator") or ""), str(value), meaning), first
    except InputError:
        return None, first
