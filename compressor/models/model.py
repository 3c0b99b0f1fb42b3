"""A decoder-only model: loading, components and their weights, forward passes."""

import functools
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from compressor.contracts import Component
from compressor.errors import ModelError, PlanError
from compressor.models import checkpoint, loading
from compressor.models.architectures import find_number
from compressor.models.components import find_components, find_layers
from compressor.models.forward import FrozenHead, run_body, run_head, run_network
from compressor.models.input_transforms import InputTransforms, Replacement, find_untransformable
from compressor.models.layer_prefetch import LayerPrefetch, OnDevice
from compressor.models.mapped_weights import MappedWeights, require_stored_dtype, stream_network
from compressor.models.stored_tensors import UnusedTensors, build_blank, check_counts, match_tensors
from compressor.models.token_ids import check_token_ids, find_bos
from compressor.models.weight_views import WeightView, find_weight_view, swapped
from compressor.settings import ComponentSettings, ModelSettings

STORED_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CONTEXT_NAMES = ("max_position_embeddings", "max_seq_len", "n_positions")


@dataclass
class Model:
    """A loaded model and its components. Forward passes record no gradient and touch no global random state.

    `vocabulary` is the number of logits, `context` the largest number of positions (None if unknown). `base_parameters`
    counts tied weights once. `stored_bytes` is the size of the weight files without `unused` tensors, which the network
    does not have, and `stored_dtype` the dtype of most weights in them. `notes` say what is unusual about the
    checkpoint. `mapped_weights` are the memory-mapped files of a streamed model. If `trusts_code` is true, code in
    the folder may run. `held` are untreated weights of components that have been treated (see `hold`).
    """

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    folder: Path
    weight_views: dict[str, WeightView]
    device: torch.device
    dtype: torch.dtype
    vocabulary: int
    context: int | None
    bos: int | None
    adds_bos: bool
    base_parameters: int
    stored_bytes: int
    stored_dtype: torch.dtype
    unused: UnusedTensors = field(default_factory=UnusedTensors)
    notes: tuple[str, ...] = ()
    mapped_weights: MappedWeights | None = None
    trusts_code: bool = False
    held: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def head_is_component(self) -> bool:
        """Can a treatment change the LM head, under its own name or as the tied embedding?"""
        head = self.network.get_output_embeddings().weight
        return any(weight_view.parameter is head for weight_view in self.weight_views.values())

    @property
    def components(self) -> dict[str, Component]:
        """The components by name, ordered by layer."""
        return {name: weight_view.component for name, weight_view in self.weight_views.items()}

    def read(self, name: str) -> Tensor:
        """A copy of the component's weight `[out, in]`."""
        return find_weight_view(self.weight_views, name).read().to(self.device)

    def hold(self, names: Collection[str]) -> None:
        """Keep the weights `[out, in]` of these components in `held`, on the host, unless they are there already.

        A later round compresses from these, not from weights that are already compressed.
        """
        self.held |= {
            name: find_weight_view(self.weight_views, name).read().cpu() for name in names if name not in self.held
        }

    @functools.cached_property
    def input_transforms(self) -> InputTransforms:
        return InputTransforms(self.network, self.weight_views)

    def write(self, name: str, weight: Tensor | Replacement) -> None:
        """Set the component's weight `[out, in]` permanently, and its input transform if the replacement has one.

        Raises PlanError if the component cannot have an input transform.
        """
        replacement = Replacement.of(weight)
        self.check_transformable([name] if replacement.input_transform else [])
        find_weight_view(self.weight_views, name).write(replacement.weight)
        self.input_transforms.put({name: replacement.input_transform})

    @contextmanager
    def swapped(self, weights: Mapping[str, Tensor | Replacement]) -> Iterator[Mapping[str, Tensor]]:
        """Inside, the components have the given weights `[out, in]`; afterwards they have their own, bit for bit.

        Yields the weights that they had. Input transforms are replaced together with the weights: a component whose new
        weight is a tensor has none. Raises PlanError for a component that cannot have an input transform.
        """
        replacements = {name: Replacement.of(weight) for name, weight in weights.items()}
        self.check_transformable([name for name, new in replacements.items() if new.input_transform])
        transforms = {name: new.input_transform for name, new in replacements.items()}
        try:
            dense = {name: new.weight for name, new in replacements.items()}
            with swapped(self.weight_views, dense) as originals, self.input_transforms.swapped(transforms):
                yield originals if self.mapped_weights is None else OnDevice(originals, self.device)
        finally:
            if self.mapped_weights is not None:
                written = [self.weight_views[name].parameter for name in self.weight_views.keys() & weights.keys()]
                for parameter in {id(parameter): parameter for parameter in written}.values():
                    self.mapped_weights.release(parameter)

    def check_transformable(self, names: Collection[str]) -> None:
        """Raise PlanError for a component that cannot have an input transform."""
        for name in names:
            if name in self._untransformable:
                raise PlanError(
                    f"the inputs of `{name}` cannot be treated: its matrix is used otherwise than by a matrix product "
                    "in its own module; exclude it by components.exclude, or leave its inputs alone"
                )

    @functools.cached_property
    def _untransformable(self) -> set[str]:
        tokens = torch.arange(loading.PROBE_TOKENS)[None] % self.vocabulary
        return find_untransformable(self.network, self.weight_views, lambda: self.logits(tokens, tokens.shape[1]))

    def content_hash(self) -> str:
        """sha256 of config.json, the weight files and the code that is trusted; computed once."""
        return self._content_hash

    @functools.cached_property
    def _content_hash(self) -> str:
        found = self.files_hash
        # The code may come from another repository.
        running = checkpoint.find_running(type(self.network)) if self.trusts_code else None
        if running is None:
            return found
        ran = checkpoint.hash_content(running, checkpoint.find_code(running))
        return hashlib.sha256(f"{found}{ran}".encode()).hexdigest()

    @functools.cached_property
    def files_hash(self) -> str:
        """sha256 of the files in the model's folder on which the network depends."""
        return checkpoint.hash_content(self.folder, checkpoint.find_hashed(self.folder, self.trusts_code))

    @torch.no_grad()
    def logits(self, tokens: Tensor, keep: int) -> Tensor:
        """`[sequence, keep, vocabulary]` at the last `keep` positions of `tokens` `[sequence, length]`."""
        return self.traced_logits(tokens, keep)

    def traced_logits(self, tokens: Tensor, keep: int) -> Tensor:
        """The same as `logits`, with gradients where a parameter or a hook requires them."""
        logits: Tensor = run_network(self.network, tokens.to(self.device), keep).logits
        return logits

    def hidden(self, tokens: Tensor, keep: int) -> Tensor:
        """`[sequence, keep, width]`: the inputs of `project` at the last `keep` positions.

        Raises ModelError if the family does not let the LM head run on its own.
        """
        return run_body(self.network, tokens.to(self.device), keep)

    def project(self, hidden: Tensor) -> Tensor:
        """`[sequence, position, vocabulary]`: the logits of what the method `hidden` returns."""
        return run_head(self.network, hidden)

    def freeze_head(self, example: Tensor) -> FrozenHead:
        """The LM head as it is now: what happens to the model later does not change it.

        Raises ModelError if it gives other logits than `project` for `example` `[sequence, position, width]`.
        """
        try:
            head = FrozenHead(self.network, copies=self.head_is_component)
            is_exact = torch.equal(head(example), self.project(example))
        except ModelError:
            raise
        except Exception as error:  # code that comes with a checkpoint raises what it likes
            reason = checkpoint.shorten_reason(error)
            raise ModelError(f"the LM head of {type(self.network).__name__} cannot be copied ({reason})") from error
        if not is_exact:
            raise ModelError(f"a copy of the LM head of {type(self.network).__name__} gives other logits")
        return head

    @torch.no_grad()
    def decode(self, prefixes: Tensor, tokens: int, pick: Callable[[Tensor], Tensor]) -> Tensor:
        """`[sequence, length + tokens]`: `prefixes` `[sequence, length]` continued one token at a time, with a cache.

        `pick` maps logits `[sequence, vocabulary]` to token ids `[sequence]`. End-of-text does not stop the generation.
        """
        sequences = step = prefixes.to(self.device)
        cache = None
        for _ in range(tokens):
            answer = run_network(self.network, step, keep=1, use_cache=True, cache=cache)
            if not bool(torch.isfinite(answer.logits).all()):
                raise ModelError(
                    f"{type(self.network).__name__} gives logits that are not finite in {self.dtype}; set a wider "
                    "`model.dtype`, or download the model again"
                )
            picked = pick(answer.logits[:, -1]).to(sequences)[:, None]
            sequences = torch.cat([sequences, picked], dim=1)
            cache = answer.get("past_key_values")
            # A recurrent family has another kind of state; it reads the whole sequence again.
            step = sequences if cache is None else picked
        return sequences


def load_model(settings: ModelSettings, components: ComponentSettings | None = None) -> Model:
    """The model on its device, checked, in evaluation mode, with frozen parameters.

    Raises ConfigError for settings that do not fit this machine or the components, and ModelError for a checkpoint that
    is not a valid decoder-only language model.
    """
    chosen = components or ComponentSettings()
    device = loading.choose_device(settings.device.value, "model.device")
    with loading.quiet_loading(device):
        folder = checkpoint.find_folder(settings)
        config = checkpoint.read_config(folder, settings.trust_remote_code)
        checkpoint.check_dense(config, folder)
        weight_files = checkpoint.find_weight_files(folder)
        tensors = checkpoint.read_tensors(weight_files)
        check_counts(folder, config, tensors)
        common = checkpoint.find_common_tensor(tensors.values()).dtype
        tokenizer = loading.load_tokenizer(folder, settings.trust_remote_code)
        dtype = _choose_dtype(settings, device, common)
        blank = build_blank(folder, config, dtype, settings.trust_remote_code)
        unused = match_tensors(folder, blank, tensors)
        token_notes = check_token_ids(folder, blank, tokenizer)
        if tokenizer is None:
            token_notes.append(
                f"{folder} has no tokenizer that transformers could read; the saved model has none either."
            )
        network, mapped_weights = _load_network(settings, folder, config, device, weight_files, dtype, blank)
        vocabulary = loading.probe_network(network)
        bos = find_bos(network, tokenizer)
        adds_bos = tokenizer is not None and list(tokenizer("a")["input_ids"][:1]) == [bos]
    stored_bits = loading.find_stored_bits(network, tensors)
    return Model(
        network=network,
        tokenizer=tokenizer,
        folder=folder,
        weight_views=find_components(network, stored_bits, chosen.include, chosen.exclude),
        device=device,
        dtype=dtype,
        vocabulary=vocabulary,
        context=find_number(*((config.get_text_config(), name) for name in CONTEXT_NAMES)),
        bos=bos,
        adds_bos=adds_bos,
        base_parameters=sum(parameter.numel() for parameter in network.parameters()),
        stored_bytes=sum(path.stat().st_size for path in weight_files)
        - sum(tensors[name].bytes for name in (*unused.extras, *unused.computed)),
        stored_dtype=STORED_DTYPES.get(common, torch.float32),
        unused=unused,
        notes=(*unused.describe(), *token_notes),
        mapped_weights=mapped_weights,
        trusts_code=settings.trust_remote_code,
    )


def _load_network(
    settings: ModelSettings,
    folder: Path,
    config: PreTrainedConfig,
    device: torch.device,
    files: Sequence[Path],
    dtype: torch.dtype,
    blank: PreTrainedModel,
) -> tuple[PreTrainedModel, MappedWeights | None]:
    """The frozen network in evaluation mode, and its mapped weights if they stay on disk."""
    if not settings.stream:
        network = loading.load_network(folder, config, dtype, settings.trust_remote_code)
        return network.to(device).eval().requires_grad_(False), None
    network, mapped_weights = stream_network(folder, config, dtype, blank, files)
    network.eval().requires_grad_(False)
    if device.type != "cpu":
        LayerPrefetch(network, find_layers(network)[1], device, mapped_weights.release)
    return network, mapped_weights


def _choose_dtype(settings: ModelSettings, device: torch.device, stored: str) -> torch.dtype:
    """The dtype in which the model computes; `stored` is that of most weights, as safetensors names it."""
    if settings.stream:
        return require_stored_dtype(settings.dtype, stored)
    automatic = torch.float32 if device.type == "cpu" else STORED_DTYPES.get(stored, torch.float32)
    return loading.choose_dtype(settings.dtype, "model.dtype", automatic)
