"""What holds of a frozen tower: it stays in evaluation mode, and adapters that stand beside its layers do not."""

from torch import nn

# in the names of parameters: of the layer beside which an adapter stands, and of the adapter (peft's)
BASE, ADAPTER = ".base_layer.", ".lora_"


def is_adapted(layer: nn.Module) -> bool:
    """Whether a layer is one that an adapter stands beside."""
    return hasattr(layer, "base_layer") and hasattr(layer, "lora_A")


def rest(tower: nn.Module, training: bool) -> None:
    """Evaluation mode for a tower: without noise, and with the statistics that it has. Its adapters are ``training`` or not."""
    tower.eval()
    for layer in [part for part in tower.modules() if is_adapted(part)]:
        layer.train(training)
        layer.get_submodule("base_layer").eval()
