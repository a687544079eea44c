"""Coded terms of structures, as DICOM segmentations and 3D Slicer use them: category, type, and anatomic region.

A code is written ``SCHEME^VALUE^MEANING``, such as ``SCT^10200004^Liver`` (SNOMED CT).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from atlasseg.errors import InputError

__all__ = ["Code", "Terminology"]

_LONGEST = (16, 64, 64)  # scheme designator, value (16 for a CodeValue, longer for a LongCodeValue), meaning


@dataclass(frozen=True)
class Code:
    """Code of a coding scheme.

    Parameters
    ----------
    scheme : str
        Coding scheme designator, such as ``SCT``; up to 16 characters.
    value : str
        Code value, such as ``10200004``; up to 64 characters.
    meaning : str
        Meaning in words, such as ``Liver``; up to 64 characters.

    Raises
    ------
    InputError
        A part is empty, too long, or holds one of ``^ ~ |`` or a backslash.
    """

    scheme: str
    value: str
    meaning: str

    def __post_init__(self) -> None:
        parts = (self.scheme, self.value, self.meaning)
        if any(not part or len(part) > most for part, most in zip(parts, _LONGEST, strict=True)) or re.search(
            r"[\^~|\\\t\r\n]", "".join(parts)
        ):
            raise InputError(f"expected a code such as SCT^10200004^Liver, got {'^'.join(parts)[:80]!r}")

    def __str__(self) -> str:
        return f"{self.scheme}^{self.value}^{self.meaning}"

    @classmethod
    def parse(cls, text: str) -> Code:
        """Parse ``SCHEME^VALUE^MEANING``.

        Parameters
        ----------
        text : str
            The code.

        Raises
        ------
        InputError
            The text has another form.
        """
        parts = [part.strip() for part in text.split("^")]
        if len(parts) != 3:
            raise InputError(f"expected a code such as SCT^10200004^Liver, got {text[:80]!r}")
        return cls(*parts)


@dataclass(frozen=True)
class Terminology:
    """Coded description of a structure.

    Parameters
    ----------
    category : Code
        Category of the structure, such as ``SCT^91723000^Anatomical Structure``.
    type : Code
        The structure, such as ``SCT^10200004^Liver``.
    type_modifier : Code, optional
        Modifier of the type, such as ``SCT^24028007^Right``.
    region, region_modifier : Code, optional
        Anatomic region that the structure lies in, and its modifier.
    """

    category: Code
    type: Code
    type_modifier: Code | None = None
    region: Code | None = None
    region_modifier: Code | None = None


ANATOMICAL_STRUCTURE = Code("SCT", "91723000", "Anatomical Structure")
UNSPECIFIED = Terminology(ANATOMICAL_STRUCTURE, ANATOMICAL_STRUCTURE)
"""Description of a structure without codes, for formats that require one."""
