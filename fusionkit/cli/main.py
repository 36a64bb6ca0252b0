"""The command line: a thin dispatcher that imports only what the chosen command needs, so that help is instant."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from io import TextIOWrapper
from typing import Any, NamedTuple

from fusionkit import __version__
from fusionkit.errors import ConfigError, UserError, clean, suggest
from fusionkit.signals import Stopped, listening, stopped_code


class Command(NamedTuple):
    """One word of the command line.

    ``target`` is "module:function": a job on a composed configuration where there is a ``config_name``, else a function of
    the arguments that gives the exit code. ``sections`` are those whose keys only a checkpoint's configuration knows,
    ``paths`` the keys whose values are files, ``texts`` those whose values are any words; words that name no key are the list
    ``operands``. ``schema`` (cli/schemas.py) is what the configuration has to be before the target is imported.
    """

    summary: str
    target: str
    examples: tuple[str, ...]
    config_name: str | None = None
    sections: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    operands: str | None = None
    schema: str | None = None


DATA_VERBS = ("make", "convert")  # each a configuration group of the same name
LOOK = "look"  # the other verb of data, which takes a file
STORED = ("data", "evaluation", "trainer")
COMMANDS = {
    "train": Command(
        "train a model on several objectives at once, then evaluate it",
        "fusionkit.commands.train:train",
        (
            "experiment=quickstart",
            "experiment=quickstart fusion=merged_attention objectives.shapes.itm=0.5",
            "experiment=quickstart resume=true",
            "-m experiment=quickstart fusion=cross_attention,merged_attention",
        ),
        "train",
        paths=("data.root", "data.files", "data.images", "output_dir", "checkpoint", "tokenizer"),
        schema="TrainConfig",
    ),
    "plan": Command(
        "what a training step will need of each device's memory, and of time on many of them, without training",
        "fusionkit.commands.plan:plan",
        (
            "experiment=quickstart",
            "experiment=quickstart activation_checkpointing=true data.sources.shapes.batch_size=64",
            "experiment=quickstart trainer=ddp scaling=a100 scaling.ranks=[8,64,1024] scaling.step_seconds=0.4",
        ),
        "plan",
        paths=("data.root", "data.files", "data.images", "output_dir", "checkpoint", "tokenizer"),
        schema="PlanConfig",
    ),
    "profile": Command(
        "where the milliseconds of a training step go, and the cheapest remedies",
        "fusionkit.commands.profile:profile",
        (
            "experiment=quickstart",
            "experiment=quickstart fusion=merged_attention profile.steps=50",
        ),
        "profile",
        paths=("data.root", "data.files", "data.images", "output_dir", "checkpoint", "tokenizer"),
        schema="ProfileConfig",
    ),
    "evaluate": Command(
        "score a checkpoint: metrics.json, predictions, picture gallery",
        "fusionkit.commands.evaluate:evaluate",
        ("checkpoint=outputs/quickstart/checkpoints/best.ckpt", "checkpoint=PATH split=test data.root=OTHER_FOLDER"),
        "evaluate",
        (*STORED, "prompts"),
        paths=("checkpoint", "output_dir", "root", "data.root"),
        schema="EvaluateConfig",
    ),
    "predict": Command(
        "write a checkpoint's predictions without scoring them, or ask it about your own images",
        "fusionkit.commands.predict:predict",
        (
            "checkpoint=PATH split=test sources=[shapes]",
            "checkpoint=PATH image=photo.jpg question='what colour is the cat?' phrase='the cat' overlay=true",
            "checkpoint=PATH image=FOLDER caption=true output=captions.jsonl",
            "checkpoint=PATH image=requests.jsonl attention=true",
        ),
        "predict",
        STORED,
        paths=("checkpoint", "output_dir", "root", "data.root", "image", "output"),
        texts=("question", "phrase", "text"),
        schema="PredictConfig",
    ),
    "alt-text": Command(
        "caption all pictures of a folder: a text beside each, or one table, with scores",
        "fusionkit.commands.alt_text:alt_text",
        (
            "FOLDER checkpoint=PATH",
            "FOLDER checkpoint=PATH output_dir=texts",
            "FOLDER checkpoint=PATH output=alt.csv",
        ),
        "alt_text",
        STORED,
        paths=("checkpoint", "output_dir", "output", "folder"),
        operands="folder",
        schema="AltTextConfig",
    ),
    "search": Command(
        "find images of your own folder by a text, an image or both, and those that look alike",
        "fusionkit.commands.search:search",
        (
            "checkpoint=PATH index=DIR images=FOLDER",
            "checkpoint=PATH index=DIR query='a dog on a beach' sheet=found.html",
            "checkpoint=PATH index=DIR image=photo.jpg query='at night' top=20 output=found.jsonl",
            "checkpoint=PATH index=DIR duplicates=true threshold=0.97",
        ),
        "search",
        STORED,
        paths=("checkpoint", "index", "images", "image", "output", "sheet"),
        texts=("query",),
        schema="SearchConfig",
    ),
    "serve": Command(
        "answer over HTTP: match, answer, ground, caption, embed and search, with a page to ask on",
        "fusionkit.commands.serve:serve",
        (
            "checkpoint=outputs/quickstart",
            "checkpoint=PATH index=DIR port=8080",
            "'checkpoint={words: A, boxes: B}' int8=true max_batch=32",
            "checkpoint=PATH host=0.0.0.0 hosts=[my.machine] evaluation.options.precision=bf16-mixed",
        ),
        "serve",
        (*STORED, "filter"),
        paths=("index",),
        schema="ServeConfig",
    ),
    "score": Command(
        "score a file of predictions against a benchmark's annotations, without a model",
        "fusionkit.commands.score:score",
        (
            "benchmark=vqav2 predictions=P.json annotations=v2_mscoco_val2014_annotations.json output=scores",
            "benchmark=refcoco predictions=P.jsonl annotations='refs(unc).p' split=testA output=scores",
        ),
        "score",
        paths=("predictions", "annotations", "questions", "instances", "output", "root"),
        schema="ScoreConfig",
    ),
    "compare": Command(
        "compare runs: what differs, scores with intervals and tests, plots, one page",
        "fusionkit.commands.compare:compare",
        (
            "outputs/a outputs/b baseline=a",
            "multirun/fusion_study group_seeds=true sort=shapes/vqa_accuracy baseline=late",
            "'outputs/*/evaluation*' output_dir=outputs/benchmarks",
            "outputs/a/logs/wandb/offline-run-*",
            "outputs/a outputs/b rating=outputs/rating    # a page on which people choose the better, blind",
            "rating=outputs/rating rating_results=[anna.json,ben.json]",
        ),
        "compare",
        paths=("output_dir", "costs", "rating"),
        operands="runs",
        schema="CompareConfig",
    ),
    "submit": Command(
        "check a file of predictions and write what the benchmark's server takes",
        "fusionkit.commands.submit:submit",
        (
            "benchmark=vqav2 predictions=P.jsonl questions=v2_OpenEnded_mscoco_test2015_questions.json output=submission",
        ),
        "submit",
        paths=("predictions", "questions", "output", "root"),
        schema="SubmitConfig",
    ),
    "import": Command(
        "bring a published checkpoint over: import FAMILY=PATH",
        "fusionkit.commands.import_checkpoint:run",
        ("albef=ALBEF.pth", "albef=refcoco.pth output=outputs/albef_384 image_size=384"),
    ),
    "export": Command(
        "write a checkpoint as config.json and model.safetensors, or in ALBEF's own layout",
        "fusionkit.commands.export:export",
        (
            "checkpoint=outputs/quickstart/checkpoints/best.ckpt output=outputs/quickstart_export",
            "checkpoint=outputs/albef layout=albef output=ALBEF_again.pth",
        ),
        "export",
        paths=("checkpoint", "output"),
        schema="ExportConfig",
    ),
    "data": Command(
        "look at your own: data look FILE; make a data set: data make NAME; convert one: data convert NAME",
        "fusionkit.commands.data:run",
        (
            "make shapes",
            "make shapes root=data/shapes scenes=1000",
            "look captions.csv",
            "look data.jsonl images=photos 'columns={caption: [short, long]}' split_by.test=0.2",
            "convert bottom_up tsv=trainval_36.tsv root=data/coco/regions",
            "convert uniter lmdb=coco_train2014/feat_th0.2_max100_min10_compressed root=data/coco/regions",
        ),
    ),
    "check": Command(
        "whether parts of your own keep their contracts: check FOLDER, that of --config-dir",
        "fusionkit.commands.check:run",
        ("my_conf",),
    ),
    "completion": Command(
        "print the shell completion: bash, zsh or fish",
        "fusionkit.cli.completion:run",
        ('bash    # eval "$(fusionkit completion bash)"', "fish    # fusionkit completion fish | source"),
    ),
}


def overview() -> str:
    """What ``fusionkit --help`` prints."""
    rows = [f"  {name:<12}{command.summary}" for name, command in COMMANDS.items()]
    examples = [f"  fusionkit {name} {command.examples[0]}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fusionkit COMMAND [key=value ...]",
            "",
            "commands (fusionkit COMMAND --help tells more)",
            *rows,
            "",
            "examples",
            *examples,
        ]
    )


def run(arguments: Sequence[str]) -> int:
    """Run one command line and give its exit code."""
    name = arguments[0] if arguments else "--help"
    if name in ("--help", "-h", "help"):
        print(overview())
        return 0
    if name == "--version":
        print(f"fusionkit {__version__}")
        return 0
    try:
        if name not in COMMANDS:
            raise ConfigError(f"fusionkit has no command '{name}'; {suggest(name, COMMANDS)}")
        if {"--help", "-h"} & set(arguments[1:]):
            print(load("fusionkit.cli.help:command_help")(name, COMMANDS[name]))
            return 0
        if COMMANDS[name].config_name is None:
            code: int = load(COMMANDS[name].target)(arguments[1:])
        else:
            with listening() if name == "train" else nullcontext():  # before all that takes seconds
                code = load("fusionkit.cli.app:run_app")(name, COMMANDS[name], arguments[1:])
        return code
    except Stopped as stopped:
        if is_first():
            print(f"\n{stopped}", file=sys.stderr)
        return stopped_code()
    except UserError as error:
        print(f"error: {clean(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def is_first() -> bool:
    """Whether this process is alone, or rank 0, as torchrun and srun tell."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def load(target: str) -> Callable[..., Any]:
    """The function that "module:function" names; imports its module."""
    module, _, function = target.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def main() -> None:
    """The ``fusionkit`` console script."""
    # Read when torch is imported: threads that spin while they wait for others take the processor from whom they wait for,
    # where another program has it too (benchmarks/README.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a rank that has ended is told of by us, in one sentence
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # a file's name may be no text, or none that the terminal can show
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)
