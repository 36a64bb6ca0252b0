"""``fusionkit predict``: write a checkpoint's predictions, one JSON line each, without scoring them."""

from omegaconf import DictConfig

from fusionkit.assembly.config_checks import check_top_level
from fusionkit.assembly.parts import evaluation_options
from fusionkit.cli.schemas import PredictConfig
from fusionkit.commands.evaluation_setup import chosen, device_of, restore, share
from fusionkit.commands.predict_images import answer_own
from fusionkit.data.requests import ASKED
from fusionkit.distributed import rank
from fusionkit.errors import ConfigError
from fusionkit.inference.benchmarks import predict_benchmarks
from fusionkit.inference.evaluate import splits_of
from fusionkit.inference.prediction import predict_source
from fusionkit.scoring.records import write_records


def predict(config: DictConfig) -> None:
    """Predict, in as many processes as ``config.devices``; with an ``image``, answer what is asked about it."""
    check_top_level(config, PredictConfig)
    if config.image is not None:
        return answer_own(config)
    for key in (*ASKED, "by", "output", "overlay", "attention"):
        if config[key]:
            raise ConfigError(f"{key} is given, but no image to ask about; add image=PICTURE")
    share("fusionkit.commands.predict:predict_share", config)


def predict_share(config: DictConfig) -> None:
    """Write ``predictions/<source>_<role>_<task>.jsonl`` for the chosen sources and roles."""
    parts, folder = restore(config, PredictConfig)
    device = device_of(parts)
    if config.get("benchmark"):
        return predict_benchmarks(config, parts, folder, device)
    objectives, roles = chosen(config, parts)
    options = evaluation_options(parts.config)
    for role, source in splits_of(parts.datamodule, objectives, roles):
        tasks = {name: parts.tasks[name] for name in objectives[source]}
        predictions = predict_source(parts.model, tasks, parts.datamodule, source, role, device, options)
        for name, records in predictions.items() if rank() == 0 else ():
            path = folder / "predictions" / f"{source}_{role}_{name}.jsonl"
            write_records(path, records)
            print(f"{len(records):,} predictions: {path}")
        for line in parts.datamodule.told_cuts(source, role):
            if rank() == 0:
                print(line)
