"""Which rows and columns can be cut out of a family's checkpoint: a table of facts about transformers' configs.

A family is here if its config.json has one number for the width of its MLPs, and its code builds them from that.
"""

from collections.abc import Mapping
from dataclasses import dataclass

WIDTH = "intermediate_size"


@dataclass(frozen=True)
class CutFamily:
    """The numbers of config.json that a cut may change.

    `widths` maps a module inside of a layer to the key of the width of the MLPs in it; "" stands for every other
    module. `heads`: whether the code takes `head_dim` from config.json, so that it may have any number of heads.
    `divides`: whether transformers requires a hidden size that is a multiple of the number of heads all the same.
    """

    widths: Mapping[str, str]
    heads: bool = False
    divides: bool = False

    def find_width(self, path: str) -> str:
        """The key of the width of the MLP at this module path."""
        inside = path.split(".")
        return next((key for module, key in self.widths.items() if module in inside), self.widths[""])


CUT_FAMILIES: dict[str, CutFamily] = {
    "llama": CutFamily({"": WIDTH}, heads=True, divides=True),
    "mistral": CutFamily({"": WIDTH}, heads=True),
    "qwen2": CutFamily({"": WIDTH}, heads=True),
    "qwen3": CutFamily({"": WIDTH}, heads=True),
    "gemma2": CutFamily({"": WIDTH}, heads=True, divides=True),
    "gemma3_text": CutFamily({"": WIDTH}, heads=True, divides=True),
    "mixtral": CutFamily({"": WIDTH}, heads=True),
    "qwen3_moe": CutFamily({"experts": "moe_intermediate_size", "": WIDTH}, heads=True),
    "qwen2_moe": CutFamily(
        {"experts": "moe_intermediate_size", "shared_expert": "shared_expert_intermediate_size", "": WIDTH}, heads=True
    ),
    "cohere": CutFamily({"": WIDTH}),  # its norms of queries and keys may have weights for each head
    "phi3": CutFamily({"": WIDTH}),  # the length of its rope factors is checked against the number of heads
    "gpt_neox": CutFamily({"": WIDTH}),
    "falcon": CutFamily({"": "ffn_hidden_size"}),
    "opt": CutFamily({"": "ffn_dim"}),
    "gpt2": CutFamily({"": "n_inner"}),
    "gptj": CutFamily({"": "n_inner"}),
    "codegen": CutFamily({"": "n_inner"}),
    "gpt_bigcode": CutFamily({"": "n_inner"}),
}
"""By the `model_type` of config.json."""
