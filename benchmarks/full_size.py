"""What data sets at their published sizes cost: the start of a run, cold and warm, the memory of its processes, and scores.

Run: python -m benchmarks.full_size write FOLDER [--scale 1.0]
     python -m benchmarks.full_size start FOLDER [--workers 2] [--samples 1000]     twice: cold, then warm
     python -m benchmarks.full_size score FOLDER
"""

import argparse
import os
import resource
import time
from pathlib import Path
from typing import Any

BATCH = 64


def main() -> None:
    """Do what the first word says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("write", "start", "score"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--samples", type=int, default=1000)
    options = parser.parse_args()
    if options.what == "write":
        from benchmarks.full_size_data import Writer

        Writer(options.folder, options.scale).everything()
    elif options.what == "start":
        start(options.folder, options.workers, options.samples)
    else:
        score(options.folder)


def start(folder: Path, workers: int, samples: int) -> None:
    """Import, read, and train a small step on the first batch; then look at the memory of this process and its workers."""
    began = time.perf_counter()
    import torch

    data = data_module(folder, workers)
    torch.set_num_threads(1)
    weight = torch.nn.Linear(3, 1)
    report("imports")
    before = private_dirty(os.getpid())
    data.require_apart()
    report("samples read")
    answers = data.answers
    report(f"{len(answers or ())} answers chosen")
    batches = iter(data.train_dataloader())
    parts: Any = next(batches)[0]
    loss = sum(weight(batch["pixel_values"].mean(dim=(2, 3))).mean() for batch in parts.values())
    loss.backward()
    report(f"first step after {time.perf_counter() - began:.0f} s")
    first = {process: private_dirty(process) for process in children(os.getpid())}
    seen = 1
    while seen * BATCH * len(parts) < samples:
        next(batches)
        seen += 1
    if not workers:  # beside a fork of it, what a process holds is no longer its alone
        own = private_dirty(os.getpid()) - before
        print(f"rank: {own / 2**20:+.0f} MB private since the imports, after {seen * BATCH * len(parts):,} samples")
    for process, at_first in first.items():
        now = private_dirty(process)
        print(f"worker: {now / 2**20:.0f} MB private, {(now - at_first) / 2**20:+.0f} MB since the first batch")


def report(what: str) -> None:
    """The processor time of this process and those it has ended, and what it holds."""
    own, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = [use.ru_utime + use.ru_stime for use in (own, ended)]
    held, peak = private_dirty(os.getpid()) / 2**20, ended.ru_maxrss / 2**10
    print(
        f"{what}: {seconds[0]:.1f} s CPU here, {seconds[1]:.1f} s in others ({peak:.0f} MB at most); {held:.0f} MB private"
    )


def private_dirty(process: int) -> int:
    """Bytes that a process alone holds, and that no file backs."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


def children(process: int) -> list[int]:
    """The processes that a process has started."""
    return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def data_module(folder: Path, workers: int) -> Any:
    """Pairs of the lists, regions and questions at once, validated on Karpathy's val and VQA's val2014."""
    from fusionkit.data.datamodule import DataModule
    from fusionkit.data.joint import Named
    from fusionkit.data.readers.caption_lists import CaptionLists
    from fusionkit.data.readers.coco import CocoCaptions
    from fusionkit.data.readers.visual_genome import VisualGenome
    from fusionkit.data.readers.vqa import VQAv2
    from fusionkit.data.source import Source
    from fusionkit.data.tokenizer import word_tokenizer

    root = str(folder)
    lists = {"train": [f"{root}/web/{name}.json" for name in ("coco", "vg", "sbu", "cc3m")]}
    pairs = {"lists": CaptionLists(lists, root), "coco": CocoCaptions(f"{root}/dataset_coco.json", root)}
    regions = VisualGenome(
        f"{root}/vg/images", f"{root}/vg/image_data.json", regions=f"{root}/vg/region_descriptions.json"
    )
    questions = VQAv2(
        f"{root}/v2_OpenEnded_mscoco_{{split}}_questions.json", f"{root}/v2_mscoco_{{split}}_annotations.json", root
    )
    sources = {
        "pairs": Source(Named(pairs), {"train": ["lists/train"], "val": ["coco/val"]}, BATCH, {"captions": 1}),
        "regions": Source(regions, {"train": ["train"]}, BATCH, {"expressions": 1}),
        "vqa": Source(questions, {"train": ["train2014"], "val": ["val2014"]}, BATCH, {"questions": 2}),
    }
    tokenizer = word_tokenizer(["what is a person on the left"])
    return DataModule(
        root, sources, tokenizer, image_size=32, num_workers=workers, drop_overlap=list(sources), steps_per_epoch=10_000
    )


def score(folder: Path) -> None:
    """Score an answer to each question of val2014."""
    from fusionkit.scoring.vqa import VQA

    data = data_module(folder, 0)
    report("imports")
    samples = data.samples("vqa", "val")
    report("samples read")
    records = [{"question_id": id, "answer": "yes"} for id in samples.ids("questions")]
    scorer = VQA()
    judged = scorer.rows(records, samples)
    report(f"{len(judged.rows):,} answers scored")


if __name__ == "__main__":
    main()
