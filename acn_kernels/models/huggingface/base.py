"""What the Hugging Face models share: a stack of blocks that can be rewired, cut and saved."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers import initialization as init

from acn_kernels.models.base import WIRINGS, check_loaded_alike
from acn_kernels.sharding import shallow_copy
from acn_kernels.stack import FusedACNStack

# A history of outputs goes with neither granularity, learned scales nor norms behind the blocks.
LANGUAGE_WIRINGS = tuple(wiring for wiring in WIRINGS if not wiring.startswith("dense"))


class ACNPreTrainedModel(PreTrainedModel):
    """A model whose base model has ``blocks``, a FusedACNStack.

    ``output_hidden_states`` gives, for every depth k, what the head reads of sub-network k: the
    normed sum norm(y_k) (y_k in BERT, which has no final norm). The last is last_hidden_state.
    """

    supports_gradient_checkpointing = True
    _supports_sdpa = True

    @property
    def alpha(self) -> float:
        """1 is the ACN, 0 the residual network; may be set between steps, and is saved."""
        return self.base_model.blocks.alpha

    @alpha.setter
    def alpha(self, alpha: float) -> None:
        self.base_model.blocks.alpha = alpha

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether the backward pass recomputes every block: what transformers switches."""
        blocks = self.base_model._modules.get("blocks")
        return blocks is not None and blocks.checkpoint is True

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        self.base_model.blocks.checkpoint = enable

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable = checkpoint,
        every_n_layers: int = 1,
    ) -> None:
        if every_n_layers != 1:
            raise ValueError(
                f"every_n_layers is {every_n_layers}; it takes 1: all blocks are recomputed or none"
            )
        if getattr(gradient_checkpointing_func, "func", checkpoint) is not checkpoint:
            raise ValueError(
                "blocks are recomputed by their stack, which takes no other function than torch's "
                "checkpoint, as offload=True brings one"
            )
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func)

    def truncate(self, k: int) -> ACNPreTrainedModel:
        """The ordinary model of the first k blocks, with the same head; weights are shared.

        Raises:
            TypeError, ValueError: k is not an integer in [0, num_hidden_layers].
        """
        short = shallow_copy(self)
        if self.base_model is self:
            short.blocks = self.blocks.truncate(k)
            short.config = copy.deepcopy(self.config)
            short.config.num_hidden_layers = k
            if not isinstance(short.config.alpha, float | None):
                short.config.alpha = short.blocks.alpha  # of its layers alone
        else:
            base = self.base_model.truncate(k)
            setattr(short, self.base_model_prefix, base)
            short.config = base.config
        if self.can_generate():
            short.generation_config = copy.deepcopy(self.generation_config)
        return short

    def save_pretrained(self, *args, **kwargs) -> None:
        """As transformers' own; the configuration takes the alpha that the blocks have now.

        Raises:
            ValueError: another option of the blocks was changed, which the configuration does not
                say: another network would be loaded.
        """
        self.config.alpha = self.alpha
        with torch.device("meta"):
            check_loaded_alike(self.base_model.blocks, type(self.base_model)(self.config).blocks)
        super().save_pretrained(*args, **kwargs)

    def forward_features(self, *args, **kwargs) -> Tensor:
        """What the head reads, [B, T, D], of the base model's arguments."""
        return self.base_model(*args, **kwargs).last_hidden_state

    def forward_intermediates(
        self, *args, indices: Sequence[int] | None = None, **kwargs
    ) -> list[Tensor]:
        """:meth:`forward_features` of the sub-networks: one for every depth in ``indices`` (None:
        0 .. num_hidden_layers), negative ones from the end."""
        states = self.base_model(*args, output_hidden_states=True, **kwargs).hidden_states
        return list(states) if indices is None else [states[k] for k in indices]

    def refuse_attention_weights(self, output_attentions: bool | None) -> None:
        """Raises ValueError where the weights are asked for, by argument or configuration: the
        fused attention never forms them, whatever ``attn_implementation`` says."""
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_attentions:
            raise ValueError(
                "output_attentions is True; these models never form attention weights, "
                "attn_implementation='eager' included"
            )

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FusedACNStack) and isinstance(module.scales, nn.Parameter):
            init.ones_(module.scales)

    def _run_blocks(
        self, x: Tensor, output_hidden_states: bool | None, **options
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """(last_hidden_state, hidden_states) of the embedded input x [B, T, D]."""
        # Self-speculative decoding shortens the model by setting this.
        depth = self.config.num_hidden_layers
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if not output_hidden_states:
            return self.blocks(x, depth=depth, **options), None
        states = self.blocks.forward_intermediates(x, indices=range(depth + 1), **options)
        return states[-1], tuple(states)
