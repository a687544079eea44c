"""Put the recipes and the sample data, which lie at the top of the repository, into the wheel."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDERS = ("pipelines", "sample_data")


class DataHook(BuildHookInterface):
    """Include the folders in a wheel, and leave them where they are in an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the folders to the files of the build."""
        if version == "standard":
            build_data["force_include"] |= {f"{self.root}/{name}": f"atlasseg/_data/{name}" for name in FOLDERS}
