"""What int8 costs in answers: the graphs of a checkpoint, fp32 and int8, on the same questions of its own test split.

Both are run by onnxruntime, scored by the task's scorer, and set beside each other with intervals (bootstrap over images), their
difference with its own (paired). Bytes and seconds are told too. Reads questions (task vqa) or hypotheses (entailment).
Run: python -m benchmarks.graphs CHECKPOINT [data.root=FOLDER] [--task vqa] [--split test] [--source NAME]
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from omegaconf import OmegaConf

from fusionkit.assembly.parts import Parts
from fusionkit.checkpoints.graphs.write import write_graphs
from fusionkit.checkpoints.load import load_parts
from fusionkit.scoring.bootstrap import compare, intervals
from fusionkit.scoring.sample_scores import Row, scores_of
from fusionkit.scoring.scorers import scorers_of

KEYS = {"questions": "question_id", "hypotheses": "pair_id"}  # what a record calls its text


def answered(folder: Path, parts: Parts, source: str, role: str, name: str) -> tuple[list[dict[str, Any]], float]:
    """The records of a split by the graphs in a folder, and the seconds in onnxruntime."""
    sessions = {
        graph: onnxruntime.InferenceSession(folder / f"model_repository/{graph}/1/model.onnx")
        for graph in ("image", "pair")
    }
    task, seconds, records = parts.tasks[name], 0.0, []
    meaning = task.meaning()  # type: ignore[operator]  # of SupportsPairScores
    for batch in parts.datamodule.eval_loader(source, role):
        rows, start = batch[task.reads], time.perf_counter()
        if not len(rows["ids"]):
            continue
        given = run(sessions["image"], {"pixel_values": batch["pixel_values"].numpy()})
        given = {port: array[rows["image_index"].numpy()] for port, array in given.items()}
        given |= {port: rows[port].numpy() for port in ("input_ids", "attention_mask")}
        best = run(sessions["pair"], given)[name].argmax(axis=1)
        seconds += time.perf_counter() - start
        found = [meaning.labels[number] for number in best]
        records += [{KEYS[task.reads]: i, meaning.reply: label} for i, label in zip(rows["ids"], found, strict=True)]
    return records, seconds


def run(session: onnxruntime.InferenceSession, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A graph's outputs by name."""
    names = [port.name for port in session.get_outputs()]
    return dict(zip(names, session.run(names, {p.name: given[p.name] for p in session.get_inputs()}), strict=True))


def report(rows: dict[str, list[Row]]) -> None:
    """The scores of both, their intervals, and the interval of the difference."""
    scores = {kind: (scores_of(found), intervals(found)) for kind, found in rows.items()}
    differences = compare(rows["int8"], rows["fp32"])
    for metric in scores["fp32"][0]:
        line = [f"{metric:32}"]
        for kind, (values, bounds) in scores.items():
            line.append(f"{kind} {values[metric]:.2f} [{bounds[metric][0]:.2f}, {bounds[metric][1]:.2f}]")
        found = differences[metric]
        print("   ".join(line), f"  int8 - fp32: {found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]")


def main() -> None:
    """Export both ways, answer, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("overrides", nargs="*", help="of data, such as data.root=FOLDER")
    for option, default in {"task": "vqa", "split": "test", "source": None}.items():
        parser.add_argument(f"--{option}", default=default)
    options = parser.parse_args()
    overrides = OmegaConf.to_container(OmegaConf.from_dotlist(options.overrides))
    assert isinstance(overrides, dict)
    parts = load_parts(options.checkpoint, {"trainer": {"accelerator": "cpu"}, **overrides})
    parts.datamodule.prepare_data()
    parts.datamodule.setup()
    source = options.source or next(s for s, names in parts.objectives.items() if options.task in names)
    samples = parts.datamodule.samples(source, options.split)
    scorer = scorers_of({options.task: parts.tasks[options.task]})[options.task]
    rows = {}
    with tempfile.TemporaryDirectory() as place:
        for kind in ("fp32", "int8"):
            folder = Path(place, kind)
            write_graphs(folder, parts, "onnx", kind == "int8", [options.task])
            size = sum(file.stat().st_size for file in folder.glob("model_repository/*/1/*"))
            records, seconds = answered(folder, parts, source, options.split, options.task)
            rows[kind] = list(scorer.rows(records, samples).rows)
            print(f"{kind}: {size / 2**20:.2f} MB of graphs, {len(records):,} answers in {seconds:.2f} s")
    report(rows)


if __name__ == "__main__":
    main()
