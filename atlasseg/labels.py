"""Label tables: value, name, colour and group of each label, parsed from and formatted as text.

The format is recognised by the content, not by the file name: BIDS TSV (``index``, ``name``, ...), CSV with the same
columns or those of Slicer, ITK-SNAP label descriptions, and FreeSurfer colour tables. Files are read and written by
:mod:`atlasseg.io`.
"""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal

from atlasseg.errors import InputError
from atlasseg.terminology import ANATOMICAL_STRUCTURE, Code, Terminology

__all__ = ["Label", "LabelTable", "format_label_table", "parse_label_table"]

log = logging.getLogger("atlasseg.io")

Color = tuple[int, int, int]
TableFormat = Literal["bids", "csv", "itk-snap", "freesurfer"]

_OKABE_ITO: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
_SHADES = (0.0, -0.35, 0.45, -0.55, 0.65)  # toward black below 0, toward white above

_VALUE_COLUMNS = ("index", "value", "id", "labelvalue", "label")
_NAME_COLUMNS = ("name", "structure", "label")
_COLOR_COLUMNS = ("color", "colour")
_CODE_COLUMNS = {
    "category_code": "category",
    "type_code": "type",
    "type_modifier_code": "type_modifier",
    "region_code": "region",
    "region_modifier_code": "region_modifier",
}
_NOTHING = ("", "n/a")
_NO_LABEL = "Clear Label"  # background in ITK-SNAP

_REAL = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_ITK_SNAP_LINE = re.compile(rf'^\s*(-?\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+{_REAL}\s+[01]\s+[01]\s+"(.*)"\s*$', re.ASCII)
# value, name, red, green, blue, alpha; some tables have another column, such as the tissue type
_FREESURFER_LINE = re.compile(r"^\s*(-?\d+)\s+(\S+)\s+(\d+)\s+(\d+)\s+(\d+)\s+\d+(?:\s+-?\d+)?\s*$", re.ASCII)
_MAX_VALUE = 2**31 - 1  # labels are 32 bits in a volume


def default_color(value: int) -> Color:
    """Default colour of a label value, as (R, G, B) in 0..255; it is the same in every table.

    The palette has the seven colours of Okabe and Ito (2008), which are safe for colour blindness, in five shades each:
    consecutive values differ in hue, and values seven apart differ in lightness. Background (0) is black. The colours
    repeat after 35 values.
    """
    if value == 0:
        return (0, 0, 0)
    red, green, blue = _OKABE_ITO[(value - 1) % len(_OKABE_ITO)]
    shade = _SHADES[(value - 1) // len(_OKABE_ITO) % len(_SHADES)]
    end = 255 if shade > 0 else 0

    def mix(channel: int) -> int:
        return round(channel + abs(shade) * (end - channel))

    return mix(red), mix(green), mix(blue)


@dataclass(frozen=True)
class Label:
    """One row of a label table.

    Parameters
    ----------
    value : int
        Value of the label in label maps.
    name : str
        Name of the structure: one line, not empty.
    color : (R, G, B) in 0..255, optional
        Colour in pictures.
    group : str, optional
        Name of a larger structure, for measures over groups of labels.
    abbreviation : str, optional
        Short name (BIDS).
    mapping : int, optional
        Value of the same structure in a standard numbering (BIDS).
    not_annotated_in : frozenset of str
        Ids of the atlases in which this label is not annotated.
    terminology : Terminology, optional
        Coded terms of the structure, for DICOM and 3D Slicer.

    Raises
    ------
    InputError
        A text is empty, is ``n/a``, or holds a tab or a line break; or a colour is outside 0..255.
    """

    value: int
    name: str
    color: Color | None = None
    group: str | None = None
    abbreviation: str | None = None
    mapping: int | None = None
    not_annotated_in: frozenset[str] = frozenset()
    terminology: Terminology | None = None

    def __post_init__(self) -> None:
        for text in (self.name, self.group, self.abbreviation):
            if text is not None and (text.strip().lower() in _NOTHING or re.search(r"[\t\r\n]", text)):
                raise InputError(f"label {self.value}: expected a name of one line without tabs, got {text!r}")
        if not -_MAX_VALUE - 1 <= self.value <= _MAX_VALUE:
            raise InputError(f"label {self.value} ({self.name}): expected a value of 32 bits, got {self.value}")
        if self.color is not None and (len(self.color) != 3 or not all(0 <= part <= 255 for part in self.color)):
            raise InputError(
                f"label {self.value} ({self.name}): expected a colour of three numbers in 0..255, got {self.color}"
            )


@dataclass(frozen=True)
class LabelTable:
    """Table of labels in the order of their file. Values are unique; several labels may have the same name.

    Parameters
    ----------
    labels : tuple of Label
        The rows.

    Raises
    ------
    InputError
        A value occurs twice.
    """

    labels: tuple[Label, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        values: dict[int, str] = {}
        for label in self.labels:
            if label.value in values:
                raise InputError(f"label {label.value} is listed twice: as {values[label.value]!r} and {label.name!r}")
            values[label.value] = label.name

    @classmethod
    def from_values(cls, values: Iterable[int]) -> LabelTable:
        """Create a table of label values with default names and colours, sorted and without background (0).

        Parameters
        ----------
        values : iterable of int
            Label values.
        """
        return cls().completed(values)

    @cached_property
    def _by_value(self) -> dict[int, Label]:
        return {label.value: label for label in self.labels}

    @cached_property
    def _by_name(self) -> dict[str, list[Label]]:
        named: dict[str, list[Label]] = {}
        for label in self.labels:
            named.setdefault(label.name, []).append(label)
        return named

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Label]:
        return iter(self.labels)

    def __contains__(self, value: object) -> bool:
        return value in self._by_value

    def __getitem__(self, value: int) -> Label:
        """Row of a label value.

        Raises
        ------
        InputError
            The table has no such label.
        """
        if value not in self._by_value:
            raise InputError(f"the label table has no label {value}; it has {_abbreviate(self._by_value)}")
        return self._by_value[value]

    @property
    def values(self) -> tuple[int, ...]:
        """Values of all labels, in the order of the table."""
        return tuple(self._by_value)

    @property
    def groups(self) -> dict[str, tuple[int, ...]]:
        """Values of each group, in the order of the table."""
        out: dict[str, tuple[int, ...]] = {}
        for label in self.labels:
            if label.group is not None:
                out[label.group] = (*out.get(label.group, ()), label.value)
        return out

    def name(self, value: int) -> str:
        """Get the name of a label value.

        Parameters
        ----------
        value : int
            Label value.

        Returns
        -------
        str
            Name; ``background`` (0) or ``label 7`` for a value that is not in the table.
        """
        if value in self._by_value:
            return self._by_value[value].name
        return "background" if value == 0 else f"label {value}"

    def color(self, value: int) -> Color:
        """Get the colour of a label value.

        Parameters
        ----------
        value : int
            Label value.

        Returns
        -------
        tuple of three ints
            (R, G, B) from 0 to 255: the label's own colour, or `default_color`.
        """
        listed = self._by_value.get(value)
        return listed.color if listed is not None and listed.color is not None else default_color(value)

    def value(self, name: str) -> int:
        """Find the value of a label by its name.

        Parameters
        ----------
        name : str
            Name of the label.

        Returns
        -------
        int

        Raises
        ------
        InputError
            No label, or more than one label, has this name.
        """
        if name not in self._by_name:
            raise InputError(f"the label table has no label {name!r}; it has {_abbreviate(self._by_name)}")
        found = [label.value for label in self._by_name[name]]
        if len(found) > 1:
            raise InputError(f"several labels have the name {name!r}: {_abbreviate(found)}. Give the number instead.")
        return found[0]

    def not_annotated_in(self, atlas_id: str) -> frozenset[int]:
        """List the labels that are not annotated in an atlas.

        Parameters
        ----------
        atlas_id : str
            Id of the atlas.

        Returns
        -------
        frozenset of int
            Label values.
        """
        return frozenset(label.value for label in self.labels if atlas_id in label.not_annotated_in)

    def completed(self, values: Iterable[int]) -> LabelTable:
        """Append a default row for each missing value, in sorted order; background (0) is not added.

        Parameters
        ----------
        values : iterable of int
            Label values.

        Returns
        -------
        LabelTable
        """
        missing = sorted({int(value) for value in values} - {0, *self._by_value})
        return LabelTable((*self.labels, *(Label(value, self.name(value), default_color(value)) for value in missing)))


def parse_label_table(text: str, *, source: str = "label table") -> LabelTable:
    """Parse a label table in any of the known formats. Warns if several labels have the same name.

    Parameters
    ----------
    text : str
        Content of the file.
    source : str
        Name of the file, for messages.

    Returns
    -------
    LabelTable

    Raises
    ------
    InputError
        The text has no known format, or a line is invalid. The message names `source` and the line number.
    """
    try:
        return _parse(text, source)
    except csv.Error as error:
        raise InputError(f"{source}: expected a label table, got lines that cannot be parsed ({error}).") from error


def _parse(text: str, source: str) -> LabelTable:
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    content = [(number, line) for number, line in lines if not line.lstrip().startswith("#")]
    if not content:
        raise InputError(f"{source}: expected a label table, got an empty file")
    first = content[0][1]
    for pattern, parse in ((_ITK_SNAP_LINE, _from_itk_snap), (_FREESURFER_LINE, _from_freesurfer)):
        if pattern.match(first):
            rows = _matched(content, pattern, parse, source)
            return _table([row for row in rows if row[1].value != 0 or row[1].name != _NO_LABEL], source)
    for delimiter in "\t,;":
        header = [cell.strip().lower() for cell in next(csv.reader([first], delimiter=delimiter))]
        value = next((column for column in _VALUE_COLUMNS if column in header), None)
        name = next((column for column in _NAME_COLUMNS if column in header and column != value), None)
        if value is not None and name is not None:
            renamed = ["index" if column == value else "name" if column == name else column for column in header]
            return _table(_from_columns(content[1:], renamed, delimiter, source), source)
    raise InputError(
        f"{source}, line {content[0][0]}: expected a label table (TSV or CSV with the columns 'index' and 'name', "
        f"ITK-SNAP or FreeSurfer), got {first.strip()[:60]!r}"
    )


def format_label_table(table: LabelTable, format: TableFormat = "bids") -> str:
    """Format a label table as text. ``bids`` (TSV) and ``csv`` keep every column, the others value, name and colour.

    Labels without a colour get the default one. In FreeSurfer names, spaces become ``_``; in ITK-SNAP names, ``"``
    becomes ``'``.

    Parameters
    ----------
    table : LabelTable
        Labels with names and colours.
    format : {"bids", "csv", "itk-snap", "freesurfer"}
        Format of the text.

    Returns
    -------
    str

    Raises
    ------
    InputError
        Two different names become the same in the FreeSurfer format, or the format is unknown.
    """
    if format == "bids":
        return _delimited(table, "\t")
    if format == "csv":
        return _delimited(table, ",")
    if format == "itk-snap":
        rows = ["# ITK-SnAP Label Description File", "# IDX  R G B  A VIS MSH  LABEL", f'0 0 0 0 0 0 0 "{_NO_LABEL}"']
        for label in table:
            if label.value != 0:
                red, green, blue = table.color(label.value)
                name = label.name.replace('"', "'")
                rows.append(f'{label.value} {red} {green} {blue} 1 1 1 "{name}"')
        return "\n".join(rows) + "\n"
    if format == "freesurfer":
        short = LabelTable(tuple(replace(label, name=re.sub(r"\s+", "_", label.name.strip())) for label in table))
        for name, labels in short._by_name.items():
            if len({table[label.value].name for label in labels}) > 1:
                values = " and ".join(str(label.value) for label in labels)
                raise InputError(
                    f"FreeSurfer names have no spaces: the labels {values} would all get the name {name!r}. Rename one."
                )
        rows = ["# No. LabelName R G B A"]
        rows += [f"{x.value} {x.name} {' '.join(str(part) for part in short.color(x.value))} 0" for x in short]
        return "\n".join(rows) + "\n"
    raise InputError(f"unknown label table format {format!r}. Choose from: bids, csv, itk-snap, freesurfer.")


def _abbreviate(items: Iterable[object], most: int = 12) -> str:
    every = [str(item) for item in items]
    shown = ", ".join(every[:most]) or "none"
    return shown if len(every) <= most else f"{shown} and {len(every) - most} more"


def _table(rows: Sequence[tuple[int, Label]], source: str) -> LabelTable:
    lines: dict[int, int] = {}
    named: dict[str, list[int]] = {}
    for number, label in rows:
        if label.value in lines:
            first = lines[label.value]
            raise InputError(f"{source}, line {number}: expected a new value, got {label.value} as in line {first}")
        lines[label.value] = number
        named.setdefault(label.name, []).append(label.value)
    for name, values in named.items():
        if len(values) > 1:
            log.warning("%s: several labels have the name %r: %s", source, name, _abbreviate(values))
    return LabelTable(tuple(label for _, label in rows))


def _matched(
    content: Sequence[tuple[int, str]], pattern: re.Pattern[str], parse: Callable[[re.Match[str]], Label], source: str
) -> list[tuple[int, Label]]:
    rows = []
    for number, line in content:
        match = pattern.match(line)
        if match is None:
            raise InputError(
                f"{source}, line {number}: expected the same format as in the lines before, got {line.strip()[:60]!r}"
            )
        rows.append((number, _at_line(source, number, partial(parse, match))))
    return rows


def _at_line(source: str, number: int, make: Callable[[], Label]) -> Label:
    try:
        return make()
    except ValueError as error:
        raise InputError(f"{source}, line {number}: {error}") from error


def _from_itk_snap(match: re.Match[str]) -> Label:
    value, red, green, blue = (int(part) for part in match.groups()[:4])
    return Label(value, match[5].strip(), (red, green, blue))


def _from_freesurfer(match: re.Match[str]) -> Label:
    red, green, blue = (int(part) for part in match.groups()[2:])
    return Label(int(match[1]), match[2], (red, green, blue))


def _from_columns(
    content: Sequence[tuple[int, str]], header: Sequence[str], delimiter: str, source: str
) -> list[tuple[int, Label]]:
    rows = []
    for number, line in content:
        cells = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter))]
        if len(cells) != len(header):
            raise InputError(
                f"{source}, line {number}: expected {len(header)} columns ({', '.join(header)}), got {len(cells)}"
            )
        row = {column: cell for column, cell in zip(header, cells, strict=True) if cell.lower() not in _NOTHING}
        rows.append((number, _at_line(source, number, partial(_from_row, row))))
    return rows


def _from_row(row: dict[str, str]) -> Label:
    if "index" not in row or "name" not in row:
        raise InputError("expected both a value and a name")
    mapping = row.get("mapping")
    color = next((row[column] for column in _COLOR_COLUMNS if column in row), None)
    return Label(
        _whole(row["index"], "value"),
        row["name"],
        _hex(color) if color is not None else _channels(row),
        row.get("group"),
        row.get("abbreviation"),
        None if mapping is None else _whole(mapping, "mapping"),
        frozenset(part.strip() for part in re.split("[,;]", row.get("not_annotated_in", "")) if part.strip()),
        _terminology(row),
    )


def _terminology(row: dict[str, str]) -> Terminology | None:
    codes = {field: Code.parse(row[column]) for column, field in _CODE_COLUMNS.items() if column in row}
    if not codes:
        return None
    if "type" not in codes:
        raise InputError(f"expected a type_code beside {', '.join(c for c in _CODE_COLUMNS if c in row)}, got none")
    return Terminology(**{"category": ANATOMICAL_STRUCTURE, **codes})


def _whole(text: str, column: str) -> int:
    """Parse a whole number, which may be written as ``1.0``."""
    try:
        return int(text)
    except ValueError:
        number = float(text) if re.fullmatch(_REAL, text, re.ASCII) else float("nan")
        if not number.is_integer() or abs(number) > _MAX_VALUE:
            raise InputError(f"expected a whole number as {column}, got {text[:40]!r}") from None
        return int(number)


def _hex(text: str) -> Color:
    if not re.fullmatch(r"#?[0-9a-fA-F]{6}", text):
        raise InputError(f"expected a colour such as #E69F00, got {text!r}")
    digits = text.removeprefix("#")
    return int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:], 16)


def _channels(row: dict[str, str]) -> Color | None:
    for names in (("r", "g", "b"), ("red", "green", "blue"), ("color_r", "color_g", "color_b")):
        if all(name in row for name in names):
            red, green, blue = (_whole(row[name], name) for name in names)
            return red, green, blue
    return None


def _delimited(table: LabelTable, delimiter: str) -> str:
    out = io.StringIO()
    columns = ["index", "name", "color"]
    columns += [
        column for column in ("abbreviation", "mapping", "group") if any(getattr(x, column) is not None for x in table)
    ]
    columns += ["not_annotated_in"] if any(label.not_annotated_in for label in table) else []
    columns += [
        column
        for column, field in _CODE_COLUMNS.items()
        if any(getattr(label.terminology, field, None) is not None for label in table)
    ]
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    writer.writerow(columns)
    for label in table:
        red, green, blue = table.color(label.value)
        cells: dict[str, object] = {
            "index": label.value,
            "name": label.name,
            "color": f"#{red:02X}{green:02X}{blue:02X}",
            "abbreviation": label.abbreviation,
            "mapping": label.mapping,
            "group": label.group,
            "not_annotated_in": ";".join(sorted(label.not_annotated_in)) or None,
            **{column: getattr(label.terminology, field, None) for column, field in _CODE_COLUMNS.items()},
        }
        writer.writerow(["n/a" if cells[column] is None else cells[column] for column in columns])
    return out.getvalue()
