"""``fusionkit export``: a checkpoint as a folder with config.json and model.safetensors, or in another layout."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fusionkit.assembly.config_checks import check_top_level
from fusionkit.assembly.trust import packages
from fusionkit.cli.schemas import ExportConfig
from fusionkit.errors import ConfigError


def export(config: DictConfig) -> None:
    """Write the checkpoint anew, upload it if asked, and say where it is."""
    check_top_level(config, ExportConfig)
    from fusionkit.checkpoints.peft_files import write_peft
    from fusionkit.checkpoints.pretrained import from_pretrained, with_merged_adapters
    from fusionkit.checkpoints.write import export_into, upload, write_published

    if config.layout and config.hub:
        raise ConfigError("hub takes a folder of ours; leave out layout, or upload the file yourself")
    output = Path(config.output)
    pretrained = from_pretrained(config.checkpoint, packages(config.trust))
    if config.layout == "peft":
        write_peft(output, pretrained)
    elif config.layout is None:
        export_into(output, with_merged_adapters(pretrained) if config.merge_adapters else pretrained)
    else:
        write_published(output, with_merged_adapters(pretrained), _published_layout(config.layout))
    print(f"wrote {output}")
    if config.hub:
        print(f"uploaded to {upload(output, config.hub)}")


def _published_layout(name: str) -> Callable[..., Any]:
    """The function that writes a family's own layout."""
    try:
        publish: Callable[..., Any] = importlib.import_module(f"fusionkit.checkpoints.families.{name}").to_published
        return publish
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"layout={name} cannot be written; known: albef, peft") from error
