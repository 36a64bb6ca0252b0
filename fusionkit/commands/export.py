"""``fusionkit export``: a checkpoint as a folder with config.json and model.safetensors, or in another layout."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fusionkit.assembly.config_checks import check_top_level
from fusionkit.assembly.trust import packages
from fusionkit.cli.schemas import ExportConfig
from fusionkit.errors import ConfigError

LAYOUTS = ("onnx", "torch")  # of graphs


def export(config: DictConfig) -> None:
    """Write the checkpoint anew, upload it if asked, and say where it is."""
    check_top_level(config, ExportConfig)
    from fusionkit.checkpoints.directory import bytes_of
    from fusionkit.checkpoints.peft_files import not_held, write_peft
    from fusionkit.checkpoints.pretrained import from_pretrained, rounded_in_training, with_merged_adapters
    from fusionkit.checkpoints.write import export_into, upload, write_published
    from fusionkit.model.int8 import is_int8, to_int8

    if config.layout in LAYOUTS:
        export_graphs(config)
        return
    if config.tasks is not None:
        raise ConfigError(
            "tasks chooses those whose graphs are written; give it with layout=onnx or torch, or leave it out"
        )
    if config.layout and config.hub:
        raise ConfigError("hub takes a folder of ours; leave out layout, or upload the file yourself")
    if config.int8 and config.layout:
        raise ConfigError("layout is another's file, which has no weights of 8 bits; leave out layout, or int8")
    output = Path(config.output)
    pretrained = from_pretrained(config.checkpoint, packages(config.trust))
    if config.layout and any(is_int8(weight) for weight in pretrained.module.parameters()):
        raise ConfigError(
            f"layout={config.layout} is another's file, which has no weights of 8 bits, as the checkpoint has; leave out layout, "
            "or give the checkpoint that they are of"
        )
    if config.layout != "peft" and (kind := rounded_in_training(pretrained)):
        size, smaller = ("", "") if config.int8 else (", at 4 bytes a number", "; int8=true writes 1 byte a number")
        print(
            f"the weights beside the adapters were rounded to {kind} in training: the file has what they were rounded to{size}, "
            f"and no more of what they were{smaller}"
        )
    if config.layout == "peft":
        not_there = not_held(pretrained)
        write_peft(output, pretrained)
        print(not_there)
    elif config.layout is None:
        pretrained = with_merged_adapters(pretrained) if config.merge_adapters else pretrained
        if told := to_int8(pretrained.module, config.int8):
            print(told)
        export_into(output, pretrained, bytes_of(config.max_shard_size), config.license, config.licences)
    else:
        write_published(output, with_merged_adapters(pretrained), _published_layout(config.layout))
    print(f"wrote {output}")
    if config.hub:
        print(f"uploaded to {upload(output, config.hub)}")


def export_graphs(config: DictConfig) -> None:
    """Write graphs that run without fusionkit, and say which tasks they are of."""
    from fusionkit.checkpoints.graphs.write import write_graphs
    from fusionkit.checkpoints.load import load_parts, read_checkpoint
    from fusionkit.checkpoints.source import local
    from fusionkit.checkpoints.write import card_of, upload

    if config.int8 not in (True, False):
        raise ConfigError(
            f"int8 is {config.int8}, but of a graph all linear layers have 8 bits or none; give int8=true or false"
        )
    if config.int8 and config.layout != "onnx":
        raise ConfigError("int8=true writes graphs of ONNX; give layout=onnx with it, or leave it out")
    if not config.merge_adapters:
        raise ConfigError(
            "merge_adapters=false: a graph has adapters added to the weights; leave it out, or leave out layout"
        )
    names = config.tasks
    if names is not None and (isinstance(names, str) or not names or not all(isinstance(name, str) for name in names)):
        raise ConfigError(f"tasks is {config.tasks}, but has to be a list of names, such as [itm, vqa]")
    output, overrides = Path(config.output), {"data": {}, "evaluation": {}, "trainer": {"accelerator": "cpu"}}
    path = local(config.checkpoint)
    parts = load_parts(path, overrides, has_data=False, trust=packages(config.trust))
    tasks = None if config.tasks is None else [str(name) for name in config.tasks]

    def card(replies: Mapping[str, str | None], use: str) -> str:
        made_of = read_checkpoint(path)["fusionkit"]
        return card_of(output.name, parts.config, made_of, replies, use, config.license, config.licences)

    for line in write_graphs(output, parts, config.layout, bool(config.int8), tasks, card):
        print(line)
    print(f"wrote {output}")
    if config.hub:
        print(f"uploaded to {upload(output, config.hub)}")


def _published_layout(name: str) -> Callable[..., Any]:
    """The function that writes a family's own layout."""
    try:
        publish: Callable[..., Any] = importlib.import_module(f"fusionkit.checkpoints.families.{name}").to_published
        return publish
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"layout={name} cannot be written; known: albef, peft, onnx, torch") from error
