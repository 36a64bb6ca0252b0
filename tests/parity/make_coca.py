"""Writes the fixture of tests/parity/test_coca.py by open_clip's own code: a tiny CoCa, what it computes, and its losses.

    pip install open_clip_torch==3.3.0 && python -m tests.parity.make_coca

open_clip is no dependency of ours; the files that it wrote lie in tests/parity/data.
"""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

transformers.BeamSearchScorer = object  # gone from transformers 5; open_clip needs it for beams, yet imports it for all
NAME = Path(__file__).parent / "data/coca_tiny"
SIZES = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 16, "layers": 2, "width": 24, "head_width": 8, "patch_size": 8, "mlp_ratio": 4.0,
        "attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 2, "output_tokens": True,
    },
    "text_cfg": {
        "context_length": 9, "vocab_size": 60, "width": 16, "heads": 2, "layers": 2, "embed_cls": True,
        "output_tokens": True,
    },
    "multimodal_cfg": {"context_length": 9, "vocab_size": 60, "width": 16, "heads": 4, "layers": 2},
}  # fmt: skip
IDS = {"cls": 2, "sep": 3, "pad": 0, "mask": 4}
LENGTHS = (9, 5, 8, 3)  # of the texts: a full one, and one that lacks a single token


def build(correct_cls_mask: bool):
    """open_clip's CoCa with weights that a seed gives."""
    from open_clip.coca_model import CoCa

    model = CoCa(**SIZES)
    model.text.correct_cls_mask = correct_cls_mask  # which no configuration of open_clip sets
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                is_norm = name.rpartition(".")[0].rpartition(".")[2].startswith("ln_") and name.endswith("weight")
                parameter.normal_(std=0.3).add_(float(is_norm))
        model.text_decoder.text_projection[:, [IDS["pad"], IDS["cls"], IDS["mask"]]] = 0  # never the likeliest
    return model.eval()


def texts() -> torch.Tensor:
    """Token ids (4, 9), padded with 0."""
    ids = torch.randint(5, SIZES["text_cfg"]["vocab_size"], (len(LENGTHS), 9))
    for row, length in enumerate(LENGTHS):
        ids[row, 0], ids[row, length - 1] = IDS["cls"], IDS["sep"]
        ids[row, length:] = IDS["pad"]
    return ids


def main() -> None:
    """Write the three files."""
    from open_clip.loss import CoCaLoss

    model, mended = build(False), build(True)
    torch.manual_seed(1)
    pixels, ids = torch.randn(4, 3, 16, 16), texts()
    out = model(pixels, ids)
    contrast, caption = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0, pad_id=0)(**out)
    (contrast + caption).backward()
    io = {name: out[name].detach() for name in ("image_features", "text_features", "logits")}
    io |= {"pixels": pixels, "ids": ids, "loss_itc": contrast.detach(), "loss_captioning_twice": caption.detach()}
    io |= {f"grad_norm.{n}": p.grad.norm() for n, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        io["image_tokens"] = model.visual(pixels)[1]
        io["mended_text_features"] = mended.encode_text(ids)
        ends = {"sot_token_id": IDS["cls"], "eos_token_id": IDS["sep"], "pad_token_id": IDS["pad"]}
        io["generated"] = model.generate(
            pixels, generation_type="top_k", top_k=1, seq_len=9, max_seq_len=9, min_seq_len=3, **ends
        )
    torch.save({n: t.clone() for n, t in model.state_dict().items()}, NAME.with_suffix(".pth"))
    save_file({n: t.contiguous() for n, t in io.items()}, NAME.with_suffix(".io.safetensors"))
    NAME.with_suffix(".json").write_text(
        json.dumps({"made_by": "open_clip 3.3.0", **SIZES, "ids": IDS}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
