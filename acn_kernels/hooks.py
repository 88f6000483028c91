"""Whether a module may be taken apart, or wants to be called."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules import module as _module

_ON_ALL = (
    _module._global_forward_hooks,
    _module._global_forward_pre_hooks,
    _module._global_backward_hooks,
    _module._global_backward_pre_hooks,
)


def hooks_of(module: nn.Module) -> tuple[dict, ...]:
    """Where the module keeps what waits to see it called."""
    return (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether something waits to see ``module`` called: a hook, or a ``forward`` of its own in the
    place of its class's, which is how accelerate offloads."""
    return any(hooks_of(module)) or "forward" in vars(module)


def hooks_on_all() -> bool:
    """Whether hooks wait to see any module called, as those of torch's
    ``register_module_forward_hook`` do."""
    return any(_ON_ALL)


def is_plain_linear(module: nn.Module) -> bool:
    """Whether ``module`` is ``x @ weight.T + bias`` and no more: no hook waits to see it called,
    and its weight holds its numbers itself, as a quantised or sharded one does not."""
    if type(module) is not nn.Linear or has_hooks(module):
        return False
    return type(module.weight) in (nn.Parameter, Tensor)
