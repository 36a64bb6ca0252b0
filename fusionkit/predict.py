"""``fusionkit predict``: write a checkpoint's predictions, one JSON line each, without scoring them."""

from omegaconf import DictConfig

from fusionkit.benchmarking import predict_benchmarks
from fusionkit.config import PredictConfig, check_top_level
from fusionkit.distributed import rank
from fusionkit.errors import ConfigError
from fusionkit.evaluate import check_files, chosen_roles, chosen_sources, device_of, restore, share
from fusionkit.evaluation.prediction import predict_source
from fusionkit.evaluation.records import write_records
from fusionkit.evaluation.run import splits_of
from fusionkit.own import answer_own
from fusionkit.training.launch import evaluation_options
from fusionkit.training.module import active_objectives


def predict(config: DictConfig) -> None:
    """Predict, in as many processes as ``config.devices``; with an ``image``, answer what is asked about it."""
    if config.image is not None:
        return answer_own(config)
    check_top_level(config, PredictConfig)
    if config.get("logger"):  # an empty group leaves no key
        raise ConfigError(
            "logger: predict scores nothing that could be logged; leave it out, or use fusionkit evaluate"
        )
    for key in ("question", "phrase", "text", "caption"):
        if config[key] is not None:
            raise ConfigError(f"{key} is given, but no image to ask about; add image=PICTURE")
    share("fusionkit.predict:predict_share", config)


def predict_share(config: DictConfig) -> None:
    """Write ``predictions/<source>_<role>_<task>.jsonl`` for the chosen sources and roles."""
    parts, folder = restore(config, PredictConfig)
    if config.get("benchmark"):
        return predict_benchmarks(config, parts, folder, device_of(parts))
    device, options = device_of(parts), evaluation_options(parts.config)
    objectives = active_objectives(
        {name: parts.objectives[name] for name in chosen_sources(config, parts)}, parts.tasks
    )
    roles = chosen_roles(config, parts)
    check_files(parts, objectives, roles)
    for module in (parts.model, *parts.tasks.values()):
        module.to(device)
    for role, source in splits_of(parts.datamodule, objectives, roles):
        tasks = {name: parts.tasks[name] for name in objectives[source]}
        predictions = predict_source(parts.model, tasks, parts.datamodule, source, role, device, options)
        for name, records in predictions.items():
            if rank() > 0:
                break
            path = folder / "predictions" / f"{source}_{role}_{name}.jsonl"
            write_records(path, records)
            print(f"{len(records):,} predictions: {path}")
