"""Folders of transformers from the command line: imported, scored, asked, trained on for two steps, exported and loaded again."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fusionkit.checkpoints.families import llava as llava_family
from fusionkit.checkpoints.pretrained import from_pretrained
from fusionkit.checkpoints.source import read_source
from fusionkit.checkpoints.write import import_into
from fusionkit.cli.main import run
from fusionkit.data.tokenizer import COMPANION, build_tokenizer, companion_of, load_tokenizer
from fusionkit.errors import ConfigError
from tests.checkpoints.worlds import coco_world

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 20, "num_hidden_layers": 2}
IMAGE = SIZES | {"image_size": 32, "patch_size": 8}


def siglip(words: dict[str, int]) -> Any:
    text = SIZES | {"max_position_embeddings": 20} | words
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=IMAGE))


def blip(words: dict[str, int]) -> Any:
    text = SIZES | {"max_position_embeddings": 20} | words
    return transformers.BlipModel(transformers.BlipConfig(text_config=text, vision_config=IMAGE))


def language(words: dict[str, int], kind: str) -> dict[str, Any]:
    return SIZES | {"model_type": kind, "max_position_embeddings": 64} | words


def llava(words: dict[str, int]) -> Any:
    vision = IMAGE | {"model_type": "clip_vision_model"}
    text = language(words, "llama")
    return transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(vision_config=vision, text_config=text))


def paligemma(words: dict[str, int]) -> Any:
    vision, text = IMAGE | {"model_type": "siglip_vision_model", "vision_use_head": False}, language(words, "gemma")
    config = transformers.PaliGemmaConfig(
        vision_config=vision, text_config=text | {"head_dim": 8, "num_key_value_heads": 1}, projection_dim=16
    )
    return transformers.PaliGemmaForConditionalGeneration(config)


def idefics3(words: dict[str, int]) -> Any:
    text = language(words, "llama")
    config = transformers.Idefics3Config(vision_config=IMAGE, text_config=text, scale_factor=2)
    return transformers.Idefics3ForConditionalGeneration(config)


def idefics(words: dict[str, int]) -> Any:
    vision = {name: size for name, size in IMAGE.items() if name != "hidden_size"} | {"embed_dim": 16}
    perceiver = {"resampler_n_latents": 3, "resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 8}
    config = transformers.IdeficsConfig(
        vision_config=vision,
        perceiver_config=perceiver,
        use_resampler=True,
        additional_vocab_size=2,
        **SIZES | {"max_position_embeddings": 64} | words | {"vocab_size": words["vocab_size"] - 2},
    )
    return transformers.IdeficsForVisionText2Text(config)


def git(words: dict[str, int]) -> Any:
    text = language(words, "git")
    text.pop("model_type")
    return transformers.GitForCausalLM(transformers.GitConfig(vision_config=IMAGE, **text))


def blip2(words: dict[str, int]) -> Any:
    """Over T5, as fusion=encoder_decoder."""
    queries = SIZES | {"encoder_hidden_size": IMAGE["hidden_size"]}
    text = {"model_type": "t5", "d_model": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8, "d_ff": 24} | words
    config = transformers.Blip2Config(
        vision_config=IMAGE, qformer_config=queries, text_config=text, num_query_tokens=3, image_token_index=5
    )
    return transformers.Blip2ForConditionalGeneration(config)


def instructblip(words: dict[str, int]) -> Any:
    """Whose queries read by a tokenizer of their own, of 400 words."""
    queries = SIZES | {"encoder_hidden_size": IMAGE["hidden_size"], "vocab_size": 400}
    config = transformers.InstructBlipConfig(
        vision_config=IMAGE, qformer_config=queries, text_config=language(words, "llama"), num_query_tokens=3
    )
    return transformers.InstructBlipForConditionalGeneration(config)


CASES: dict[str, tuple[Callable[[dict[str, int]], Any], str]] = {  # the model, and a score of it
    "siglip": (siglip, "text_to_image_r1"),
    "blip": (blip, "text_to_image_r1"),
    "llava": (llava, "caption_bleu4"),
    "paligemma": (paligemma, "caption_bleu4"),
    "idefics3": (idefics3, "caption_bleu4"),
    "idefics": (idefics, "caption_bleu4"),
    "git": (git, "caption_bleu4"),
    "blip2": (blip2, "caption_bleu4"),
    "instructblip": (instructblip, "caption_bleu4"),
}
SAYING = dict.fromkeys(("llava", "paligemma", "idefics3", "idefics", "git", "blip2", "instructblip"), "caption")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco_world(tmp_path_factory.mktemp("coco"))


def saved(family: str, world: Path, folder: Path) -> Path:
    """A model as its users have it: weights, tokenizer and the settings of its images."""
    tokenizer = load_tokenizer(world / "words")
    ids = {"pad": tokenizer.pad_token_id, "bos": tokenizer.cls_token_id, "eos": tokenizer.sep_token_id}
    words = {"vocab_size": len(tokenizer)} | {f"{name}_token_id": number for name, number in ids.items()}
    torch.manual_seed(0)
    CASES[family][0](words).save_pretrained(folder)
    for file in (world / "words").iterdir():
        shutil.copy(file, folder)
    if family == "instructblip":
        build_tokenizer(["is this a red circle ?"], folder / COMPANION)
    settings = {"size": {"height": 32, "width": 32}, "resample": 2, "image_mean": [0.4] * 3, "image_std": [0.3] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


SLOW = ("blip", "paligemma", "idefics3", "idefics", "git")  # the others are tried at each run


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CASES]
)
def test_from_the_command_line(family, world, tmp_path, capsys):
    theirs, ours = saved(family, world, tmp_path / "theirs"), tmp_path / "ours"
    quick = ["data.num_workers=0", f"data.root={world}"]
    tasks = ["tasks=[captioning]"] if family in SAYING else []
    assert run(["import", f"{family}={theirs}", f"output={ours}", *tasks]) == 0, capsys.readouterr().err
    config = from_pretrained(ours).config
    assert (config.data.resample, list(config.data.mean), config.data.image_size) == ("bilinear", [0.4] * 3, 32)

    line = ["evaluate", f"checkpoint={ours}", f"output_dir={tmp_path}/scores", "trainer.accelerator=cpu", "split=test"]
    assert run([*line, *quick]) == 0, capsys.readouterr().err
    assert f"coco/{CASES[family][1]}" in json.loads((tmp_path / "scores/metrics.json").read_text())

    image = next((world / "images").glob("*.jpg"))
    line = ["predict", f"checkpoint={ours}", f"image={image}", "trainer.accelerator=cpu", f"output={tmp_path}/r.jsonl"]
    asked = ["text=a red circle"] if family not in SAYING else ["caption=true"]
    assert run([*line, *asked, f"output_dir={tmp_path}/asked"]) == 0, capsys.readouterr().err
    (reply,) = [json.loads(text) for text in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert SAYING.get(family, "cosine") in reply

    line = ["train", "--config-dir", str(ours), "experiment=imported", *quick, "data.sources.coco.batch_size=4"]
    line += ["task.captioning.prompt=a"] if family in SAYING else []
    small = ["trainer=cpu", "trainer.fast_dev_run=2", f"output_dir={tmp_path}/run"]
    assert run([*line, *small]) == 0, capsys.readouterr().err
    assert f"started from {ours}\n" in capsys.readouterr().out

    assert run(["export", f"checkpoint={ours}", f"output={tmp_path}/exported"]) == 0, capsys.readouterr().err
    states = [from_pretrained(folder).module.state_dict() for folder in (ours, tmp_path / "exported")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert (companion_of(from_pretrained(tmp_path / "exported").tokenizer) is None) == (family != "instructblip")


@pytest.mark.parametrize("family", CASES)
def test_a_foreign_configuration_runs_nothing(family, world, tmp_path, capsys):
    folder = saved(family, world, tmp_path / "theirs")
    plain = json.loads((folder / "config.json").read_text())
    built = {"note": {"_target_": "os.mkdir", "_args_": [f"{tmp_path}/run"]}}
    inner = [name for name in ("text_config", "vision_config") if name in plain]
    forged = [plain | built, plain | {"note": "${oc.env:HOME}"}, plain | {"a list": [built]}]
    forged += [plain | {name: plain[name] | built} for name in inner]
    capsys.readouterr()
    for config in forged:
        (folder / "config.json").write_text(json.dumps(config))
        assert run(["import", f"{family}={folder}", f"output={tmp_path}/ours"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {folder}/config.json: ")
        assert "would run code" in line
    (folder / "config.json").write_text(json.dumps(plain | {"max_target_positions": 3, "_target_sizes": "no _target_"}))
    read_source(folder)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("paligemma", {"hidden_size": 2**40}, "text_config.hidden_size is 1099511627776, but the largest tensor"),
        ("llava", {"num_attention_heads": 0}, "config.json: is no LlavaConfig"),
    ],
)
def test_impossible_sizes_are_the_configurations_fault(family, change, words, world, tmp_path, capsys):
    folder = saved(family, world, tmp_path / "theirs")
    content = json.loads((folder / "config.json").read_text())
    content["text_config"] |= change
    (folder / "config.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert run(["import", f"{family}={folder}", f"output={tmp_path}/ours"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_what_a_family_makes_of_a_folder_is_checked_before_it_is_built(world, tmp_path):
    def planner(source):
        plan = llava_family.plan(source, tasks=["captioning"])
        return replace(
            plan, config={**plan.config, "text_encoder": {"_target_": "os.mkdir", "path": f"{tmp_path}/run"}}
        )

    with pytest.raises(ConfigError, match=r"text_encoder\._target_ is 'os\.mkdir'"):
        import_into(tmp_path / "ours", str(saved("llava", world, tmp_path / "theirs")), planner)
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_that_ends_texts_otherwise_is_refused(world, tmp_path, capsys):
    theirs = saved("llava", world, tmp_path / "theirs")
    end = load_tokenizer(theirs).sep_token_id
    (theirs / "generation_config.json").write_text(json.dumps({"eos_token_id": [6, 7]}))
    line = ["import", f"llava={theirs}", f"output={tmp_path}/ours", "tasks=[captioning]"]
    assert run(line) == 2
    told = capsys.readouterr().err
    assert f"tokenizer={theirs} ends texts with the token {end}, but the checkpoint with 6 or 7; give its own" in told
    assert not (tmp_path / "ours").exists()
    (theirs / "generation_config.json").write_text(json.dumps({"eos_token_id": [6, end]}))
    assert run(line) == 0
