"""What the top level of each command's configuration holds, and of which type; any other key is a mistake."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING, DictConfig

from fusionkit.assembly.config_checks import check_arguments, check_objectives, check_top_level, require_seed
from fusionkit.errors import ConfigError

NO_RUNS = "there are no runs to compare; name folders: fusionkit compare outputs/a outputs/b"


@dataclass
class TrainConfig:
    """The top level of a training run; any other key is an error. Below it the signatures of the ``_target_`` decide."""

    name: str = MISSING
    seed: int = MISSING
    max_skipped_steps: int = 3  # the run ends at so many steps in a row whose losses or gradients are not finite
    activation_checkpointing: Any = False  # true, or parts: their blocks are computed anew in the backward pass
    gradient_cache: Any = None  # images, texts or pairs that are read at a time, with the gradient of all
    compile: Any = None  # parts whose blocks torch.compile compiles
    output_dir: str = MISSING
    resume: bool | str = False  # go on from output_dir/checkpoints/last.ckpt; "auto": where there is such a file
    overwrite: bool = False  # replace a finished run of the same output_dir
    checkpoint: str | None = None  # start from the weights of this one
    tokenizer: Any = None  # a directory or a hub id; null builds one from the texts of the training data
    size: Any = None  # numbers that the parts refer to as ${size.NAME}
    image_encoder: Any = MISSING
    text_encoder: Any = MISSING
    fusion: Any = MISSING
    model: Any = MISSING
    adapters: Any = None
    task: Any = MISSING
    objectives: Any = MISSING
    data: Any = MISSING
    image_tokens: Any = None
    frozen_weights: str = "stored"  # "beside": what never trains is kept once, beside the checkpoints
    ema: Any = None  # the moving average of the weights, used in their place
    negatives: Any = None
    balance: Any = None
    stages: Any = None
    teacher: Any = None
    optimizer: Any = MISSING
    scheduler: Any = None
    trainer: Any = MISSING
    logger: Any = None
    callbacks: Any = None
    evaluation: Any = None


@dataclass
class PlanConfig(TrainConfig):
    """The top level of ``fusionkit plan``: a training, and machines."""

    scaling: Any = None


@dataclass
class ProfileConfig(TrainConfig):
    """The top level of ``fusionkit profile``: a training, and how many of its steps are timed."""

    profile: Any = None


@dataclass
class RestoreConfig:
    """What ``fusionkit evaluate`` and ``predict`` share; what lies below the sections is the checkpoint's to know."""

    checkpoint: str = MISSING
    trust: Any = None  # packages whose parts a stored configuration may name, beside our own
    split: Any = None
    sources: Any = None
    output_dir: str | None = None
    devices: Any = MISSING
    data: Any = MISSING
    evaluation: Any = MISSING
    trainer: Any = MISSING
    benchmark: Any = None
    root: str = MISSING
    int8: Any = False  # true, or parts: their linear layers have weights of 8 bits


@dataclass
class EvaluateConfig(RestoreConfig):
    """The top level of ``fusionkit evaluate``."""

    overlays: int = 0
    prompts: Any = None
    resamples: int = MISSING
    seed: int = MISSING
    logger: Any = None


@dataclass
class PredictConfig(RestoreConfig):
    """The top level of ``fusionkit predict``; with an ``image`` the rest of these keys count."""

    image: Any = None
    question: str | None = None
    phrase: str | None = None
    text: str | None = None
    caption: Any = None
    by: str | None = None
    top: int = MISSING
    batch_size: int = MISSING
    output: str | None = None
    overlay: bool = False
    attention: bool = False
    layer: int | None = None


@dataclass
class AltTextConfig:
    """The top level of ``fusionkit alt-text``."""

    folder: Any = MISSING
    checkpoint: str = MISSING
    trust: Any = None
    output_dir: str | None = None
    output: str | None = None
    overwrite: bool = False
    by: str | None = None
    batch_size: int = MISSING
    data: Any = MISSING
    evaluation: Any = MISSING
    trainer: Any = MISSING


@dataclass
class SearchConfig:
    """The top level of ``fusionkit search``."""

    checkpoint: str = MISSING
    trust: Any = None
    index: str = MISSING
    images: str | None = None
    query: Any = None
    image: str | None = None
    weight: float = MISSING
    top: int = MISSING
    k: int = MISSING
    duplicates: bool = False
    threshold: float = MISSING
    output: str | None = None
    sheet: str | None = None
    batch_size: int = MISSING
    data: Any = MISSING
    evaluation: Any = MISSING
    trainer: Any = MISSING


@dataclass
class ServeConfig:
    """The top level of ``fusionkit serve``."""

    checkpoint: Any = MISSING
    trust: Any = None
    index: str | None = None
    int8: Any = False
    host: str = MISSING
    port: int = MISSING
    hosts: Any = None
    filter: Any = None
    max_batch: int = MISSING
    wait_ms: float = MISSING
    max_queue: int = MISSING
    timeout_seconds: float = MISSING
    max_body_mb: float = MISSING
    max_megapixels: float = MISSING
    max_characters: int = MISSING
    max_images: int = MISSING
    max_turns: int = MISSING
    max_top: int = MISSING
    head_seconds: float = MISSING
    body_seconds: float = MISSING
    drain_seconds: float = MISSING
    readers: int = MISSING
    data: Any = MISSING
    evaluation: Any = MISSING
    trainer: Any = MISSING


@dataclass
class ScoreConfig:
    """The top level of ``fusionkit score``."""

    benchmark: Any = MISSING
    predictions: str = MISSING
    annotations: str = MISSING
    questions: str | None = None
    instances: str | None = None
    split: str | None = None
    output: str = MISSING
    allow_missing: bool = MISSING
    resamples: int = MISSING
    seed: int = MISSING
    root: str | None = None


@dataclass
class SubmitConfig:
    """The top level of ``fusionkit submit``."""

    benchmark: Any = MISSING
    predictions: str = MISSING
    questions: str = MISSING
    output: str = MISSING
    split: str | None = None
    method: str = MISSING
    root: str | None = None


@dataclass
class CompareConfig:
    """The top level of ``fusionkit compare``."""

    runs: Any = MISSING
    rating: str | None = None
    rating_of: str | None = None
    rating_pairs: int = MISSING
    rating_results: Any = None
    trust: Any = None
    baseline: str | None = None
    metrics: Any = None
    group_seeds: bool = MISSING
    sort: str | None = None
    costs: str | None = None
    output_dir: str = MISSING
    examples: int = MISSING
    resamples: int = MISSING
    seed: int = MISSING


@dataclass
class ExportConfig:
    """The top level of ``fusionkit export``."""

    checkpoint: str = MISSING
    output: str = MISSING
    trust: Any = None
    layout: str | None = None
    merge_adapters: bool = True
    int8: Any = False
    tasks: Any = None
    max_shard_size: Any = None
    license: str | None = None
    licences: Any = None
    hub: str | None = None


def check(config: DictConfig, schema: str) -> None:
    """Raise ConfigError for what is wrong in a command's configuration and can be seen without torch."""
    if schema == "CompareConfig" and not config.runs and not config.rating_results:
        raise ConfigError(NO_RUNS)
    check_top_level(config, globals()[schema])
    if schema in ("TrainConfig", "PlanConfig", "ProfileConfig"):
        check_objectives(config)
        check_arguments(config)
        require_seed(config.seed)
