"""mixer_stack: a stack of Mixer blocks as one operation, and the blocks' parameters for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from acn_kernels import dispatch
from acn_kernels.autograd.mixer_stack import BACKEND, MixerStack
from acn_kernels.functional.checks import check_input, check_sum, is_recorded
from acn_kernels.hooks import has_hooks
from acn_kernels.norm_spec import NormSpec
from acn_kernels.ops import compiled
from acn_kernels.validation import check_alphas

# The parts of a MixerBlock that have parameters, in the order in which a layer applies them.
_PARTS = (
    "norm1", "token_mlp.fc1", "token_mlp.fc2",
    "norm2", "channel_mlp.fc1", "channel_mlp.fc2",
    "closing", "norm3",
)  # fmt: skip
_WITHOUT_CLOSING = 6
# The rows that fill up a tile vary by nothing: without an eps, their norm would be 0 / 0.
_LEAST_EPS = torch.finfo(torch.float32).tiny


class MixerParameters(NamedTuple):
    """The parameters of L Mixer blocks of one form, stacked along a first axis [L, ...].

    T tokens, width D, hidden widths H (of the token MLP) and C (of the channel MLP); matrices are
    [out, in] as in nn.Linear. The last four are None without the block's closing step.
    """

    norm1_weight: Tensor  # [L, D]
    norm1_bias: Tensor
    token1_weight: Tensor  # [L, H, T]
    token1_bias: Tensor
    token2_weight: Tensor  # [L, T, H]
    token2_bias: Tensor
    norm2_weight: Tensor  # [L, D]
    norm2_bias: Tensor
    channel1_weight: Tensor  # [L, C, D]
    channel1_bias: Tensor
    channel2_weight: Tensor  # [L, D, C]
    channel2_bias: Tensor
    closing_weight: Tensor | None = None  # [L, D, D]
    closing_bias: Tensor | None = None
    norm3_weight: Tensor | None = None  # [L, D]
    norm3_bias: Tensor | None = None
    eps: float = 1e-5  # of all LayerNorms inside; above 0

    @classmethod
    def of(cls, blocks: Sequence[nn.Module]) -> MixerParameters:
        """Those of ``blocks``; gradients flow back through the stacking.

        Raises:
            ValueError: the blocks do not make one stack; :func:`obstacle_to_mixer_blocks` in words.
        """
        obstacle = obstacle_to_mixer_blocks(blocks)
        if obstacle:
            raise ValueError(f"blocks do not make one Mixer stack: {obstacle}")
        return cls(*map(torch.stack, parameters_by_kind(blocks)), eps=blocks[0].norm1.eps)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The parameters that there are: 12, or 16 with the closing step."""
        return tuple(self[:16] if self.closing_weight is not None else self[:12])


def parameters_by_kind(blocks: Sequence[nn.Module]) -> list[list[Tensor]]:
    """For each field of MixerParameters that there is, the parameters of all ``blocks``."""
    return [
        [getattr(block.get_submodule(part), name) for block in blocks]
        for part in _parts_of(blocks[0])
        for name in ("weight", "bias")
    ]


def obstacle_to_mixer_blocks(blocks: Sequence[nn.Module]) -> str | None:
    """Why ``blocks`` are not one stack of uniform Mixer blocks; None where they are."""
    if len(blocks) == 0:
        return "there is no layer"
    for i, block in enumerate(blocks):
        for obstacle in _obstacles_in(block):
            return f"layers[{i}] {obstacle}"
    form = _form(blocks[0])
    for i, block in enumerate(blocks):
        if _form(block) != form:
            return f"layers[{i}] differs from layers[0] in a size, a dtype, a device or an eps"
    return None


def obstacle_to_mixer_stack(blocks: Sequence[nn.Module], x: Tensor) -> str | None:
    """Why :func:`mixer_stack` cannot run ``blocks`` on inputs like x; None where it can."""
    return obstacle_to_mixer_blocks(blocks) or obstacle_to_input_of(blocks[0], x)


def obstacle_to_input_of(
    block: nn.Module, x: Tensor, autocast: torch.dtype | None = None
) -> str | None:
    """Why :func:`mixer_stack` cannot run on inputs like x for blocks like this; None where it
    can. ``autocast``: what x and the blocks' matrices are brought to before; None leaves them."""
    weight = block.channel_mlp.fc1.weight
    tokens, width = block.token_mlp.fc1.in_features, weight.shape[1]
    if x.dim() < 2 or x.shape[-2:] != (tokens, width):
        return f"the input has shape {tuple(x.shape)}; the layers take [..., {tokens}, {width}]"
    of_layers = weight.dtype if autocast is None else x.dtype
    if (x.dtype, x.device) != (of_layers, weight.device):
        return (
            f"the input is {x.dtype} on {x.device}, the layers are {weight.dtype} on "
            f"{weight.device}"
        )
    if autocast is not None and weight.dtype == torch.float64:
        return "the layers are torch.float64, which autocast leaves as they are"
    return _obstacle_to_samples(x, block.closing is not None, autocast)


def mixer_stack(
    x: Tensor,
    parameters: MixerParameters,
    spec: NormSpec | None = None,
    scales: Tensor | None = None,
    include_input: bool = True,
    alpha: float | Sequence[float] | Tensor = 1.0,
) -> Tensor:
    """``norm(sum_i a_i x_i)`` of the Mixer blocks with ``parameters``, in one kernel.

    A sample and its sum stay on chip through all layers. With gradients, what a layer hands to the
    next is kept, and nothing else; the backward pass is one sweep that computes each layer again
    and adds the direct gradient, then one batched product for each kind of weight. Runs on Triton
    alone.

    Args:
        x: x_0, [..., T, D] with T up to 64, D up to 256 and, both rounded up to powers of two,
            T x D up to 8192; fp16, bf16 or fp32. With the closing step D up to 128 in fp32, and
            in any dtype where a GPU gives a block less than 128 KB of shared memory.
        parameters: of x's dtype and device.
        spec: the final norm, or None for the bare sum.
        scales: a_0 .. a_L as [L+1], or None for ones.
        include_input: whether x_0 is a term of the sum; a_0 is not read without it.
        alpha: in [0, 1], or one for each layer, or such numbers in a tensor [] or [L], which takes
            no gradient: layers read ``alpha x_{i-1} + (1-alpha) y_{i-1}``, and have shortcuts
            inside as MixerBlock has them. 1 beside ``scales`` and without the input.

    Returns:
        Like x.

    Raises:
        TypeError, ValueError: an argument is of another kind, shape, dtype or device.
        RuntimeError: Triton cannot run here, or not on inputs like x.
    """
    check_parameters(x, parameters)
    layers = len(parameters.norm1_weight)
    check_sum(x, layers, spec, scales)
    alpha = alpha_by_layer(_checked_alpha(alpha, layers), layers, x.device)
    if alpha is not None and (scales is not None or not include_input):
        raise ValueError("alpha is not 1, which goes neither with scales nor without the input")
    recorded = is_recorded(spec, x, scales, *parameters.tensors)
    return run_mixer_stack(x, parameters, alpha, spec, scales, include_input, x.dtype, recorded)


def run_mixer_stack(
    x, parameters, alpha, spec, scales, include_input, out_dtype, recorded
) -> Tensor:
    """:func:`mixer_stack` with arguments that are known to go together, and alpha by layer. Vectors
    among the parameters may be wider than x."""
    (x, *inputs), options = operands(x, parameters, spec, scales, include_input)
    if recorded:
        return MixerStack.apply(x, alpha, *inputs, *options, out_dtype, *parameters.tensors)[0]
    stack = compiled(BACKEND).mixer_stack
    return stack(x, parameters.tensors, alpha, *inputs, *options, False, out_dtype)[0]


def alpha_by_layer(
    alpha: float | tuple[float, ...] | Tensor, layers: int, device: torch.device
) -> Tensor | None:
    """[layers] fp32 on ``device``, as the operators take it; None for the number 1."""
    if isinstance(alpha, (int, float)) and alpha == 1:
        return None
    if isinstance(alpha, Tensor) and alpha.device == device:
        return alpha.float().expand(layers)
    # Single numbers from the host are arguments of kernels, which CUDA graphs take, too.
    one = torch.ones((), dtype=torch.float32, device=device)
    if isinstance(alpha, tuple) or (isinstance(alpha, Tensor) and alpha.dim()):
        return torch.stack([one * number for number in alpha])
    return (one * alpha).expand(layers)


def _checked_alpha(alpha, layers: int) -> float | tuple[float, ...] | Tensor:
    if not isinstance(alpha, Tensor):
        return check_alphas(alpha, layers)
    if not alpha.is_floating_point() or alpha.shape not in ((), (layers,)):
        raise ValueError(
            f"alpha is {alpha.dtype} of shape {tuple(alpha.shape)}; {layers} layers take floating "
            f"point numbers () or ({layers},)"
        )
    if alpha.requires_grad:
        raise ValueError("alpha requires a gradient; it takes a tensor that does not")
    return alpha


def operands(
    x: Tensor,
    parameters: MixerParameters,
    spec: NormSpec | None,
    scales: Tensor | None,
    include_input: bool,
) -> tuple[tuple, tuple]:
    """((x, scales, norm weight, norm bias), (layers' eps, norm's eps, kind, include_input)): the
    arguments as the operators take them."""
    kind, weight, bias = ("none", None, None) if spec is None else spec[:3]
    eps = 0.0 if spec is None else spec.eps_for(x.dtype)
    return (x, scales, weight, bias), (parameters.eps, eps, kind, include_input)


def _obstacle_to_samples(
    x: Tensor, closing: bool, autocast: torch.dtype | None = None
) -> str | None:
    obstacle = dispatch.obstacle_to(BACKEND, x)
    if obstacle:
        return obstacle
    from acn_kernels.kernels.launch import mixer_tile_obstacle

    return mixer_tile_obstacle(*x.shape[-2:], autocast or x.dtype, closing, x.device)


def is_mixer_block(block: nn.Module) -> bool:
    """Whether ``block`` is a MixerBlock, and no subclass that may compute something else."""
    return _part_of_stack(block) == "mixer"


def _part_of_stack(module: nn.Module) -> str | None:
    """What the kernels know ``module`` as, by the word of its own class and of no parent's."""
    return vars(type(module)).get("whole_stack")


def _obstacles_in(block: nn.Module) -> Iterator[str]:
    """What keeps a kernel from doing what ``block`` does, in words."""
    if not is_mixer_block(block):
        yield f"is a {type(block).__name__}, no MixerBlock"
        return
    for name, module in block.named_modules():
        label = f"{name or 'itself'} ({type(module).__name__})"
        if has_hooks(module):
            yield f"has hooks on {label}"
    for name in ("token_mlp", "channel_mlp"):
        mlp = getattr(block, name)
        if _part_of_stack(mlp) != "mlp":
            yield f"has {name} of {type(mlp).__name__}, not Mlp"
            return
    for part in _parts_of(block):
        module = block.get_submodule(part)
        expected = nn.LayerNorm if part.startswith("norm") else nn.Linear
        if type(module) is not expected:
            yield f"has {part} of {type(module).__name__}, not {expected.__name__}"
        elif type(module.weight) not in (nn.Parameter, Tensor, type(None)):
            yield f"has {part} with a {type(module.weight).__name__}"
        elif module.weight is None or module.bias is None:
            yield f"has {part} without a weight or a bias"
        elif expected is nn.LayerNorm and not module.eps >= _LEAST_EPS:
            yield f"has {part} with an eps of {module.eps}, below {_LEAST_EPS:.2g}"
    for mlp in (block.token_mlp, block.channel_mlp):
        if type(mlp.act) is not nn.GELU or mlp.act.approximate != "none":
            yield f"has {mlp.act} between its Linear layers, not the exact GELU"


def _parts_of(block: nn.Module) -> tuple[str, ...]:
    return _PARTS if block.closing is not None else _PARTS[:_WITHOUT_CLOSING]


def _form(block: nn.Module) -> tuple:
    """What all blocks of one stack share."""
    norms = [part for part in block.children() if isinstance(part, nn.LayerNorm)]
    return (
        [(name, p.shape, p.dtype, p.device) for name, p in block.named_parameters()],
        {norm.eps for norm in norms} | {block.norm1.eps},
    )


def check_parameters(x: Tensor, parameters: MixerParameters) -> None:
    """Raises where x, or the parameters for it, are none that :func:`mixer_stack` takes."""
    check_input("x", x)
    if not isinstance(parameters, MixerParameters):
        raise TypeError(f"parameters is a {type(parameters).__name__}; it takes MixerParameters")
    if x.dim() < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; it takes [..., T, D]")
    if not parameters.eps >= _LEAST_EPS:
        raise ValueError(
            f"parameters.eps is {parameters.eps}; it takes a number of at least {_LEAST_EPS:.2g}"
        )
    tokens, width = x.shape[-2:]
    layers = len(parameters.norm1_weight)
    if layers == 0:
        raise ValueError("parameters are those of no layer; a Mixer stack takes at least one")
    hidden = parameters.token1_weight.shape[1], parameters.channel1_weight.shape[1]
    matrices = {
        "token1": (hidden[0], tokens),
        "token2": (tokens, hidden[0]),
        "channel1": (hidden[1], width),
        "channel2": (width, hidden[1]),
        "closing": (width, width),
    }
    for name, tensor in parameters._asdict().items():
        if name == "eps" or (tensor is None and parameters.closing_weight is None):
            continue
        part, kind = name.split("_")
        shape = matrices.get(part, (width,))
        shape = (layers, *shape) if kind == "weight" else (layers, shape[0])
        if tensor is None or tensor.shape != shape:
            got = None if tensor is None else tuple(tensor.shape)
            raise ValueError(
                f"parameters.{name} has shape {got}; for samples of {tokens} x {width} it takes "
                f"{shape}"
            )
        if tensor.numel() >= 2**31:
            raise ValueError(f"parameters.{name} has {tensor.numel()} elements; it takes < 2^31")
        if tensor.dtype != x.dtype:
            raise TypeError(f"parameters.{name} has dtype {tensor.dtype}, x has {x.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"parameters.{name} is on {tensor.device}, x on {x.device}")
    obstacle = _obstacle_to_samples(x, parameters.closing_weight is not None)
    if obstacle:
        raise RuntimeError(f"the Mixer kernels cannot run: {obstacle}")
