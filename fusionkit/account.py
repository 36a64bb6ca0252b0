"""Whether W&B knows who we are."""

from fusionkit.errors import ConfigError


def require_key(wish: str, instead: str) -> None:
    """ConfigError where W&B has no key for this machine; in a terminal it asks for one first."""
    import wandb

    try:
        if wandb.login(verify=False):
            return
    except wandb.errors.Error:  # no terminal to ask in
        pass
    raise ConfigError(
        f"{wish} needs a W&B account, and there is no key: set WANDB_API_KEY, run wandb login, or {instead}"
    )
