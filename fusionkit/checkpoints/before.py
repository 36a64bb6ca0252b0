"""Configurations that an earlier fusionkit stored: they lack the settings that came since."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fusionkit.data.source import Source

BY_KIND = ("texts_per_image", "template")  # whose keys are kinds of texts, and no settings


def take_later_settings(stored: DictConfig, overrides: Mapping[str, Any]) -> None:
    """Let overrides change settings of sources that the configuration is older than, and name further kinds of texts."""
    known = {field.name for field in fields(Source)}
    for name, given in ((overrides.get("data") or {}).get("sources") or {}).items():
        source = OmegaConf.select(stored, f"data.sources.{name}")
        if isinstance(source, DictConfig) and isinstance(given, Mapping | DictConfig):
            source.update({key: None for key in given if key in known and key not in source})
            for section in BY_KIND:
                if isinstance(source.get(section), DictConfig) and isinstance(given.get(section), Mapping | DictConfig):
                    source[section].update({kind: None for kind in given[section] if kind not in source[section]})
