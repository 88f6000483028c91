"""torch.nn.TransformerEncoder turns padded batches into nested tensors where its layers allow."""

from __future__ import annotations

from acn_kernels.convert.block import Converted, ConvertedBlock


class ConvertedEncoder(Converted):
    """Nested tensors are for the kernel of the residual layer: with alpha above 0, none."""

    @property
    def use_nested_tensor(self) -> bool:
        first = self.layers[0]
        residual = not isinstance(first, ConvertedBlock) or first._acn_chain.is_residual
        return residual and self.__dict__["use_nested_tensor"]

    @use_nested_tensor.setter
    def use_nested_tensor(self, value: bool) -> None:
        self.__dict__["use_nested_tensor"] = value
