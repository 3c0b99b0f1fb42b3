"""Opened runs for benchmarks: a model with its references, ready to be asked whatever a schedule may ask."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch

from compressor.artifacts.run_record import Record
from compressor.commands.run import Run
from compressor.contracts import Compressor, KeepRequest, Metric, Oracle, Problem, Schedule, Search
from compressor.models import Model
from compressor.plugins import installed
from compressor.search.fused_components import open_dialogue
from compressor.search.session import Session
from compressor.settings import DataSettings, DType, ModelSettings, Settings, SweepSettings
from compressor.tracking.wandb_tracker import Tracker

MODELS = ("tiny", "stories260K", "tinystories-656k", "tinystories-2.8M")
SHARED = Path(__file__).parents[3] / "shared" / "models"


@dataclass
class Nothing(Schedule):
    """Asks for nothing: the benchmark asks by itself."""

    name: ClassVar[str] = "nothing"

    def search(self, problem: Problem) -> Search:
        yield from ()


class Undecided:
    """A session that puts no plan on the model: it only remembers the first one that a schedule keeps."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.kept: KeepRequest | None = None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - a method of the session
        return getattr(self.session, name)

    def keep(self, request: KeepRequest) -> dict[str, float]:
        self.kept = self.kept or request
        amounts = {name: treatment.amount for name, treatment in request.plan.items()}
        return {component.name: amounts.get(component.name, 0.0) for component in self.session.problem.components}


def decide(undecided: Undecided, schedule: Schedule) -> KeepRequest:
    """What a schedule would keep in its first round."""
    session = undecided.session
    dialogue, oracle = open_dialogue(schedule, session.problem, cast(Oracle, undecided), session.fuses)
    for _ in dialogue.converse(oracle):
        if undecided.kept is not None:
            break
    assert undecided.kept is not None
    return undecided.kept


def find_model(name: str) -> str | None:
    """A name from `MODELS`, or a folder, as `model.path`."""
    if name == "tiny":
        return None
    return str(SHARED / name) if (SHARED / name).is_dir() else name


def make_random(folder: str, layers: int, width: int, context: int = 512) -> int:
    """Bytes of a Llama with random weights, 7 matrices a layer; 12 layers of width 640 are 63 million."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=2048, hidden_size=width, intermediate_size=-(-width // 24) * 64, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, max_position_embeddings=context,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="500MB")
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


@contextmanager
def open_run(
    model: str,
    compressors: Sequence[Compressor],
    metrics: Sequence[str] | Mapping[str, Metric],
    schedule: Schedule | None = None,
    seed: int = 0,
    dtype: DType = DType.auto,
    data: DataSettings | None = None,
    outliers: float | None = None,
    stream: bool = False,
    batch: int | None = None,
    **options: Any,  # noqa: ANN401 - fields of DataSettings
) -> Iterator[Run]:
    """A run with its references built, in a folder that is removed afterwards.

    `outliers` grows some channels so many times, see `grow_outliers`; `stream` leaves weights in their files; `batch`
    sequences are in a forward pass; `options` go into the data settings.
    """
    plugins = installed()
    chosen = metrics if isinstance(metrics, Mapping) else {name: plugins.metrics[name]() for name in metrics}
    settings = Settings(
        metric=dict(chosen),
        compressor={compressor.name: compressor for compressor in compressors},
        schedule=schedule or Nothing(),
        model=ModelSettings(path=find_model(model), dtype=dtype, stream=stream),
        data=replace(data or DataSettings(), seed=seed, **options),
        # No cache: what is not measured costs nothing, and weights may be changed below.
        sweep=SweepSettings(cache=False, batch=batch),
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Run(settings, Path(folder), Tracker(), Record("running", {}, {}))
        run.load(plugins)
        if outliers is not None:
            grow_outliers(run.setup.model, outliers)
        run.build_references()
        yield run


@torch.no_grad()
def grow_outliers(model: Model, factor: float, channels: int = 6) -> None:
    """Scale some channels behind every norm of a Llama, and undo it in the matrices that read them.

    The function stays the same, and the weights get the outliers that large models have by themselves.
    """
    draw = torch.Generator().manual_seed(0)
    for layer in model.network.model.layers:
        readers = {
            layer.input_layernorm: (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
            layer.post_attention_layernorm: (layer.mlp.gate_proj, layer.mlp.up_proj),
        }
        for norm, matrices in readers.items():
            chosen = torch.randperm(len(norm.weight), generator=draw)[:channels]
            norm.weight[chosen] /= factor
            for matrix in matrices:
                matrix.weight[:, chosen] *= factor
