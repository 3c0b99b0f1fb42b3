"""Linear modules whose weight is zero everywhere: they make no matrix product."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class ZeroLinear(nn.Linear):
    """y = b `[…, out]`, or 0 without a bias, for any finite x `[…, in]`: what a product with a weight of zeros gives.

    The weight is shared with the module that it replaces, and saved like that of any other. If somebody changes it, the
    product is made again.
    """

    _zero: tuple[Tensor, int]
    """The weight that is zero, and torch's count of the writes to it."""

    @classmethod
    def replacing(cls, linear: nn.Linear) -> "ZeroLinear":
        """A module with the same parameters; the weight of `linear` must be zero everywhere."""
        module = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        module.weight, module.bias = linear.weight, linear.bias
        module._zero = (linear.weight, linear.weight._version)
        return module.train(linear.training)

    def forward(self, inputs: Tensor) -> Tensor:
        weight, writes = self._zero
        if self.weight is not weight or weight._version != writes:
            return super().forward(inputs)
        out = inputs.new_zeros(*inputs.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias


def skip_zeros(network: PreTrainedModel) -> None:
    """Replace every linear module whose weight is zero everywhere; a product with it costs as much as any other."""
    linears = {path: module for path, module in network.named_modules() if type(module) is nn.Linear}
    if not linears:
        return
    counts = torch.stack([torch.count_nonzero(module.weight) for module in linears.values()])
    for (path, module), count in zip(linears.items(), counts.tolist(), strict=True):
        if not count:
            network.set_submodule(path, ZeroLinear.replacing(module))
