"""Penultimate features of any classifier that ends in a linear layer; the model itself needs no special forward."""

from torch import Tensor, nn

from datafree.errors import UserError


def last_linear(model: nn.Module) -> nn.Linear:
    """The last ``nn.Linear`` in the order of ``model.modules()``. Raises UserError where there is none."""
    for module in reversed(list(model.modules())):
        if isinstance(module, nn.Linear):
            return module
    raise UserError(f"{type(model).__name__} has no nn.Linear", "give a classifier whose last layer is an nn.Linear")


def forward_with_features(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """One forward pass that also reads the input of the last linear layer.

    Args:
        model: any classifier with an ``nn.Linear``; its hooks are as before on return, also after an error.
        x: what the model takes; here (B, 3, H, W).

    Returns:
        logits (B, num_classes) and features (B, width), both with their gradients.

    Raises:
        UserError: the model has no linear layer, or its forward does not call the last one.
    """
    inputs: list[Tensor] = []

    def keep(_: nn.Module, args: tuple, kwargs: dict) -> None:
        inputs.append(args[0] if args else kwargs["input"])

    hook = last_linear(model).register_forward_pre_hook(keep, with_kwargs=True)
    try:
        logits = model(x)
    finally:
        hook.remove()
    if not inputs:
        raise UserError(
            f"the forward of {type(model).__name__} does not call its last nn.Linear",
            "let the layer that gives the logits be the last nn.Linear of the model",
        )
    return logits, inputs[-1]
