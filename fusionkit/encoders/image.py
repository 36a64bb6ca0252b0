"""Any timm model as a tower that gives image tokens."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from fusionkit.encoders.frozen import rest
from fusionkit.encoders.probe import first_line, freeze, rehearse, unreached_parameters
from fusionkit.errors import ConfigError, DataError, UserError, suggest
from fusionkit.types import Tokens, at_least_fp32

# options of timm by which it reads files, beside ``pretrained``
FILES = ("weights", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "file")


class PixelEncoder(nn.Module):
    """What encoders of pixels have in common: what it is to hide an image token, and what is to be told of it (task mrm)."""

    reads = "pixel_values"
    reads_canvases = False  # whether images may differ in shape (types.Pixels)
    mask_token_size = 3  # a colour
    hidden_size: int
    num_prefix_tokens: int

    @property
    def feature_size(self) -> int:
        """Width of what is to be told."""
        return self.hidden_size

    def hide(self, pixel_values: Any, chosen: Tensor, filling: Tensor) -> Any:
        """The pixels below the chosen tokens, bool (I, N), painted with the colour ``filling`` (3,)."""
        grid = as_grid(chosen[:, self.num_prefix_tokens :].float())[:, None]  # (I, 1, side, side)
        hidden = F.interpolate(grid, size=pixel_values.shape[2:]).bool()
        return torch.where(hidden, filling[:, None, None].to(pixel_values.dtype), pixel_values)

    def features(self, pixel_values: Tensor, tokens: Tokens) -> Tensor:
        """What is to be told of a hidden token (I, N, feature_size): its own state where nothing is hidden, normalised.

        A constant, and normalised so that states which shrink are told no better (data2vec, arXiv 2202.03555).
        """
        return F.layer_norm(at_least_fp32(tokens.embeds.detach()), (self.hidden_size,))

    def corners(self, pixel_values: Tensor, tokens: Tokens) -> Tensor:
        """Where the tokens lie, (I, N, 4): left, top, right, bottom in parts of the image; zeros for one that has no place."""
        side = math.isqrt(tokens.embeds.shape[1] - self.num_prefix_tokens)
        place = torch.arange(side, device=tokens.embeds.device) / side
        top_left = torch.stack(torch.meshgrid(place, place, indexing="ij")[::-1], dim=2).flatten(0, 1)
        cells = F.pad(torch.cat([top_left, top_left + 1 / side], dim=1), (0, 0, self.num_prefix_tokens, 0))
        return cells.expand(len(tokens.embeds), -1, -1)

    def grids(self, pixel_values: Any, image_index: Tensor, maps: Tensor) -> list[Tensor]:
        """Maps (T, N) over the tokens of the images that image_index (T,) names, as pictures (rows, columns).

        Without the tokens that stand for no place.
        """
        return list(as_grid(maps[:, self.num_prefix_tokens :]))

    def decode(self, states: Tensor) -> Tensor:
        """States (M, hidden_size) -> features (M, feature_size)."""
        return states


class TimmEncoder(PixelEncoder):
    """Image tokens of pixels (I, 3, H, W) from a timm model: transformer tokens as they are, feature maps flattened row by row.

    ``name``       the timm architecture.
    ``pretrained`` True loads timm's weights for that name from the hub.
    ``weights``    a local weight file in timm's own layout, or in another order-preserving one (``match_by_order``).
    ``stage``      for a ConvNet: stop at this stage of ``feature_info`` (0-based), e.g. to keep a fine grid on small images.
    ``pool``       "cls" reads the first prefix token, "mean" averages the patch tokens, "max" takes each channel's largest:
                   what a small thing shows is not drowned by its background; "map" is a transformer's own attention pooling
                   (SigLIP).
    ``grid_size``  for a feature map, which knows no places: normalises its tokens and adds learnt position embeddings for a
                   grid of this side, started from sines and cosines.
    ``top_layers`` the states of so many last layers of a transformer, each normalised, side by side in the width (BridgeTower).
    ``layers``     the states behind so many blocks of a transformer, as they are, side by side in the width; blocks above
                   the last of them are not built, nor is the last norm (LLaVA).
    ``norm_pooled`` the last norm once more over what is pooled (transformers' BLIP).
    ``before_norm`` tokens of a transformer as they are before its last norm, pooled after it (FLAVA).
    ``intermediate_size`` width between the two maps of a transformer's feed-forward parts, for timm's ``mlp_ratio``, which is one
                   of floats and rounds; needs ``embed_dim``.
    ``frozen``     no gradient, batch-norm statistics and dropout as in evaluation.
    A class token that timm does not declare (VOLO) is found, and what no token depends on (a classifier's last layers) is frozen.
    Other options go to ``timm.create_model`` (``img_size``, ``patch_size``, ``dynamic_img_size``, ...).
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        weights: str | None = None,
        match_by_order: bool = False,
        stage: int | None = None,
        pool: str = "cls",
        grid_size: int | None = None,
        frozen: bool = False,
        before_norm: bool = False,
        top_layers: int = 1,
        layers: Sequence[int] = (),
        norm_pooled: bool = False,
        intermediate_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if (channels := options.get("in_chans", 3)) != 3:
            raise ConfigError(
                f"image_encoder.in_chans is {channels}, but images are read with 3 channels, grey ones too; leave it out"
            )
        if stage is not None:
            options |= {"features_only": True, "out_indices": (stage,)}
        else:
            options |= {"num_classes": 0}
        if intermediate_size is not None:
            if "embed_dim" not in options:
                raise ConfigError(
                    "image_encoder.intermediate_size is a number beside image_encoder.embed_dim; give that too"
                )
            options |= {"mlp_ratio": (intermediate_size + 0.5) / options["embed_dim"]}  # timm cuts the product off
        self.layers, self.norm_pooled = tuple(layers), norm_pooled
        if self.layers:
            if min(self.layers) < 1:
                raise ConfigError(f"image_encoder.layers is {list(layers)}, but blocks are counted from 1")
            options |= {"depth": max(self.layers), "final_norm": False}
        if weights is not None and not match_by_order:
            options |= {"pretrained_cfg_overlay": {"file": _existing(weights)}}
            pretrained = True
        self.backbone: Any = _create(name, pretrained, options)
        self.has_stage, self.pool, self.is_frozen = stage is not None, pool, frozen
        self.takes_gradients = not frozen  # adapters within a frozen one need them
        for unused in ("head", "fc_norm"):  # parts that only the classifier reads would never get a gradient
            if hasattr(self.backbone, unused):
                setattr(self.backbone, unused, nn.Identity())
        info: Any = self.backbone
        self.hidden_size: int = info.feature_info.channels()[-1] if self.has_stage else info.num_features
        self.num_prefix_tokens = getattr(self.backbone, "num_prefix_tokens", 0)
        self.top_layers = top_layers
        self._try_out(name, options.get("img_size"))
        has = {"cls": self.num_prefix_tokens > 0, "map": getattr(self.backbone, "attn_pool", None) is not None}
        if pool not in ("cls", "mean", "max", "map") or not has.get(pool, True):
            raise ConfigError(f"image_encoder.pool is '{pool}', which {name} cannot give; set image_encoder.pool=mean")
        if weights is not None and match_by_order:
            load_by_order(self.backbone, weights)
        self.position = None if grid_size is None else nn.Parameter(sine_positions(grid_size, self.hidden_size))
        self.norm = nn.Identity() if grid_size is None else nn.LayerNorm(self.hidden_size)
        self.hidden_size *= max(top_layers, len(self.layers))
        self.last_norm: Any = nn.Identity()
        if before_norm:
            self.last_norm, self.backbone.norm = self.backbone.norm, nn.Identity()
        if frozen:
            self.backbone.requires_grad_(False).eval()  # for Lightning trains what is in training mode when it begins
        self.backbone.to(memory_format=torch.channels_last)  # convolutions are up to twice as fast so, on CPU and GPU

    def _try_out(self, name: str, size: int | Sequence[int] | None) -> None:
        """Find a class token that is not declared, freeze what no token depends on; ConfigError for what gives no tokens."""
        own: Any = get_pretrained_cfg(name)
        sides = own.input_size[1:] if size is None else (size, size) if isinstance(size, int) else size
        try:
            found = rehearse(self, TimmEncoder._features, 1, 3, *sides)
        except UserError:
            raise
        except Exception as error:  # whatever a model makes of its own images
            raise ConfigError(
                f"image_encoder: {name} does not read pixels ({first_line(error)}); choose another"
            ) from error
        if found is None:
            return
        states, twin = found
        if not isinstance(states, Tensor):
            raise ConfigError(
                f"image_encoder.name: {name} gives several grids of tokens, not one; choose another model"
            )
        patches = states.shape[1] - self.num_prefix_tokens
        if sides[0] == sides[1] and math.isqrt(patches) ** 2 != patches and math.isqrt(patches - 1) ** 2 == patches - 1:
            self.num_prefix_tokens += 1
        unreached = unreached_parameters(twin, [states])
        freeze(self, [name for name in unreached if self.pool != "map" or not name.startswith("backbone.attn_pool.")])

    def sizes(self) -> dict[str, Any]:
        """Nothing: the name and the options say it all."""
        return {}

    @staticmethod
    def weightless(config: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
        """The same options but for the files and downloads among them."""
        off = {"pretrained": False, "match_by_order": False} | dict.fromkeys(FILES)
        return dict(config) | {key: value for key, value in off.items() if key in config}

    def train(self, mode: bool = True) -> "TimmEncoder":
        super().train(mode)
        if self.is_frozen:
            rest(self.backbone, mode)
        return self

    def forward(self, pixel_values: Tensor) -> Tokens:
        """(I, 3, H, W) -> tokens (I, N, hidden_size), all of them attendable."""
        return self.tokens(self.states(pixel_values))

    @property
    def tower(self) -> nn.Module:
        """timm's model."""
        return self.get_submodule("backbone")

    def states(self, pixel_values: Any) -> Tensor:
        """(I, 3, H, W) -> what timm's model makes of them, (I, N, width)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.takes_gradients):
            return self._features(pixel_values.contiguous(memory_format=torch.channels_last))

    def tokens(self, states: Tensor) -> Tokens:
        """States (I, N, width) -> tokens (I, N, hidden_size)."""
        patches = states[:, self.num_prefix_tokens :]
        if self.position is not None:
            if patches.shape[1] != self.position.shape[1]:
                raise ConfigError(
                    f"image_encoder.grid_size squared is {self.position.shape[1]}, but an image gives {patches.shape[1]}; "
                    "change image_encoder.grid_size or the image size of the data"
                )
            patches = self.norm(patches) + self.position
            states = torch.cat([states[:, : self.num_prefix_tokens], patches], dim=1)
        pooled = self.last_norm(self._pool(states, patches))
        return Tokens(states, None, self.backbone.norm(pooled) if self.norm_pooled else pooled)

    def _pool(self, states: Tensor, patches: Tensor) -> Tensor:
        """Of all states (I, N, width) and those of patches -> (I, width)."""
        if self.pool == "cls":
            return states[:, 0]
        if self.pool == "map":
            pooled: Tensor = self.backbone.attn_pool(patches)
            return pooled
        return patches.mean(dim=1) if self.pool == "mean" else patches.amax(dim=1)

    def _features(self, pixel_values: Tensor) -> Tensor:
        if self.top_layers > 1 or len(self.layers) > 1:
            taken = sorted({number - 1 for number in self.layers})
            kept = self.backbone.forward_intermediates(
                pixel_values,
                indices=taken or self.top_layers,
                return_prefix_tokens=True,
                norm=not taken,
                output_fmt="NLC",
                intermediates_only=True,
            )
            parts = [part if isinstance(part, Tensor) else torch.cat(part[::-1], dim=1) for part in kept]
            return torch.cat([parts[taken.index(n - 1)] for n in self.layers] or parts, dim=2)
        backbone = self.backbone
        states: Tensor = backbone(pixel_values)[-1] if self.has_stage else backbone.forward_features(pixel_values)
        if isinstance(states, Tensor) and states.dim() == 4:  # a feature map, channels first (ConvNets) or last (Swin)
            states = states.flatten(2).transpose(1, 2) if states.shape[1] == self.hidden_size else states.flatten(1, 2)
        return states


def as_grid(tokens: Tensor) -> Tensor:
    """(I, side * side, ...) -> (I, side, side, ...), read row by row; ConfigError where the tokens are no square."""
    side = math.isqrt(tokens.shape[1])
    if side * side != tokens.shape[1]:
        raise ConfigError(f"image_encoder gives {tokens.shape[1]} tokens, which are no square; give it square images")
    grid: Tensor = tokens.unflatten(1, (side, side))
    return grid


def sine_positions(side: int, size: int) -> Tensor:
    """Position embeddings (1, side * side, size) of a square grid, read row by row.

    Half the channels tell the row, half the column: sines and cosines of wavelengths in geometric progression (Vaswani et al.
    2017), from two cells up to four times the grid, since on a small grid longer waves would tell nothing.
    """
    if size % 4:
        raise ConfigError(
            f"image_encoder.grid_size: position embeddings need a width divisible by 4, the tokens have {size}"
        )
    waves = 2 * (2 * side) ** torch.linspace(0, 1, size // 4)
    angles = torch.arange(side)[:, None] * (2 * torch.pi / waves)  # (side, size / 4)
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, size / 2)
    rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)[None]


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    if not timm.is_model(name):
        near = timm.list_models(f"*{name[:5]}*") or timm.list_models("vit_*")
        raise ConfigError(f"image_encoder.name '{name}' is no timm model; {suggest(name, near[:40])}")
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except (TypeError, AssertionError) as error:  # timm asserts, for one, that the heads divide the width
        raise ConfigError(f"image_encoder: timm's {name} does not take one of {sorted(options)} ({error})") from error
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"image_encoder: the weights of {name} could not be loaded ({reason}); check image_encoder.weights"
        ) from error


def _existing(path: str) -> str:
    if not Path(path).is_file():
        raise DataError(f"image_encoder.weights: no such file {path}; give a timm weight file or weights=null")
    return path


def load_by_order(module: nn.Module, path: str) -> None:
    """Load a state dict whose tensors stand in the same order and shapes under other names.

    For releases of an architecture that timm also has (EfficientNet-Lite0 of the `pretrained` extra). Every tensor must
    fit in shape and in the last part of its name (weight, bias, running_mean...); the classifier at the end may be left over.
    """
    theirs = torch.load(_existing(path), map_location="cpu", weights_only=True)
    ours = module.state_dict()
    counter = "num_batches_tracked"  # older files lack it
    pairs = zip([n for n in ours if counter not in n], [n for n in theirs if counter not in n], strict=False)
    renamed = {}
    for our_name, their_name in pairs:
        tensor = theirs[their_name]
        if tensor.shape != ours[our_name].shape or our_name.rpartition(".")[2] != their_name.rpartition(".")[2]:
            raise DataError(
                f"{path}: tensor {their_name} {tuple(tensor.shape)} does not fit {our_name} {tuple(ours[our_name].shape)}"
            )
        renamed[our_name] = tensor
    missing = [name for name in ours if name not in renamed and counter not in name]
    if missing:
        raise DataError(f"{path}: holds {len(theirs)} tensors, too few; first one missing: {missing[0]}")
    module.load_state_dict(renamed | {name: ours[name] for name in ours if counter in name})
