"""Train the language model that ships as `model=tiny`.

Two phases, both on short stories only:

1. Language modelling with dropout on every residual branch, an exponential moving average of the weights,
   windows as long as the context. Stories begin with the BOS token, so that `data=self` can sample from it.
2. Sequence-level unlikelihood (Welleck et al., 2020, arXiv 1908.04319): the model continues prefixes
   greedily; every token that completes a repeated 4-gram is made less likely, while ordinary language
   modelling goes on. It removes loops from greedy text, which would otherwise freeze the divergence metrics.

The last 5 % of the text are never trained on; `evaluate` measures bits per byte and loops there.

    python docs/tiny/train.py --text tinystories-4M.txt --start DIR --out DIR
    python docs/tiny/train.py --text tinystories-4M.txt --start DIR --evaluate
"""

import argparse
import copy
import logging
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("train")
HELD_OUT = 0.05
PREFIX, CONTINUATION, LOOP = 32, 64, 8


def split_text(path: Path) -> tuple[str, str]:
    """The part to train on and the held-out rest."""
    text = path.read_text(encoding="utf-8")
    cut = int(len(text) * (1 - HELD_OUT))
    return text[:cut], text[cut:]


def encode_stories(text: str, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Token ids of all stories; stories are parted by single line breaks, each begins with BOS."""
    stories = re.split(r"(?<!\n)\n(?!\n)", text)
    ids: list[int] = []
    for story in stories:
        ids += [tokenizer.bos_token_id, *tokenizer(story, add_special_tokens=False).input_ids]
    return torch.tensor(ids)


def add_dropout(model: PreTrainedModel, rate: float) -> None:
    """Drop activations of the residual branches while `model.training`."""
    for layer in model.model.layers:
        for branch in (layer.self_attn.o_proj, layer.mlp.down_proj):
            branch.register_forward_hook(lambda module, args, output: functional.dropout(output, rate, module.training))


def batches(ids: Tensor, size: int, window: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Random windows `[size, window]` of the token stream, for ever; every epoch cuts at another offset."""
    while True:
        offset = int(torch.randint(window, (), generator=generator))
        rows = ids[offset : offset + (len(ids) - offset) // window * window].view(-1, window)
        order = torch.randperm(len(rows), generator=generator)
        for start in range(0, len(order) - size + 1, size):
            yield rows[order[start : start + size]]


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(tokens).logits[:, :-1].float()
    return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def optimizer_of(model: nn.Module, rate: float, decay: float) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))


@torch.no_grad()
def continue_greedily(model: PreTrainedModel, prefixes: Tensor, tokens: int) -> Tensor:
    """`[sequence, prefix + tokens]`: plain greedy decoding that end-of-text does not stop."""
    sequence, cache, step = prefixes, None, prefixes
    for _ in range(tokens):
        output = model(step, past_key_values=cache, use_cache=True)
        cache, step = output.past_key_values, output.logits[:, -1:].argmax(-1)
        sequence = torch.cat([sequence, step], 1)
    return sequence


def repeats(sequence: Tensor, start: int, length: int) -> Tensor:
    """`[sequence, position]`: does this token, from `start` on, complete an n-gram seen before in its row?"""
    found = torch.zeros_like(sequence, dtype=torch.bool)
    for row, tokens in enumerate(sequence.tolist()):
        seen = set()
        for end in range(length, len(tokens) + 1):
            gram = tuple(tokens[end - length : end])
            found[row, end - 1] = gram in seen and end > start
            seen.add(gram)
    return found


@torch.no_grad()
def evaluate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> dict[str, float]:
    """Held-out bits per byte in windows of 256 and 512 tokens, and loop-free continuations of 100."""
    model.eval()
    ids = torch.tensor(tokenizer(text, add_special_tokens=False).input_ids)
    result = {}
    for window in (256, 512):
        rows = ids[: len(ids) // window * window].view(-1, window)
        nats = sum(loss_of(model, row).item() * row[:, 1:].numel() for row in rows.split(16))
        bytes_scored = len(text.encode()) * len(rows) * (window - 1) / len(ids)
        result[f"bits_per_byte_{window}"] = nats / math.log(2) / bytes_scored
    starts = torch.linspace(0, len(ids) - PREFIX, 100).long()
    prefixes = torch.stack([ids[start : start + PREFIX] for start in starts])
    continuation = continue_greedily(model, prefixes, CONTINUATION)[:, PREFIX:]
    result["loop_free"] = float((~repeats(continuation, 0, LOOP).any(1)).sum())
    return result


def learn_language(model: PreTrainedModel, stream: Iterator[Tensor], arguments: argparse.Namespace) -> None:
    """Phase 1; leaves the moving average of the weights in `model`."""
    optimizer = optimizer_of(model, arguments.rate, arguments.decay)
    average = copy.deepcopy(model.state_dict())
    began = time.monotonic()
    for step in range(arguments.steps):
        progress = step / arguments.steps
        factor = min(1.0, (step + 1) / arguments.warmup) * (0.5 + 0.5 * math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * factor
        model.train()
        loss = loss_of(model, next(stream))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        keep = min(arguments.average, (step + 1) / (step + 10))
        for name, value in model.state_dict().items():
            average[name].lerp_(value, 1 - keep)
        if step % 50 == 0:
            log.info("step %d loss %.4f seconds %.0f", step, loss.item(), time.monotonic() - began)
    model.load_state_dict(average)


def unlearn_loops(model: PreTrainedModel, stream: Iterator[Tensor], arguments: argparse.Namespace) -> None:
    """Phase 2: minimise cross entropy − Σ log(1 − p(token that completes a repeated 4-gram))."""
    optimizer = optimizer_of(model, arguments.loop_rate, 0.0)
    for step in range(arguments.loop_steps):
        batch = next(stream)
        model.eval()
        sequence = continue_greedily(model, batch[:, : PREFIX + 1], 2 * CONTINUATION)
        bad = repeats(sequence, PREFIX + 1, 4)
        model.train()
        probability = model(sequence).logits[:, :-1].float().softmax(-1)
        chosen = probability.gather(-1, sequence[:, 1:, None]).squeeze(-1)
        penalty = -(torch.log1p(-chosen.clamp(max=1 - 1e-4)) * bad[:, 1:]).sum() / max(1, int(bad.sum()))
        (loss_of(model, batch) + arguments.loop_weight * penalty).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = arguments.loop_rate * (1 - step / arguments.loop_steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0:
            log.info("loop step %d share repeated %.3f", step, bad.float().mean().item())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--start", type=Path, required=True, help="checkpoint (and tokenizer) to start from")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--evaluate", action="store_true", help="only measure the checkpoint given as --start")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--average", type=float, default=0.998)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--loop-steps", type=int, default=200)
    parser.add_argument("--loop-rate", type=float, default=1e-4)
    parser.add_argument("--loop-weight", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_arguments()
    torch.manual_seed(arguments.seed)
    tokenizer = AutoTokenizer.from_pretrained(arguments.start)
    model = AutoModelForCausalLM.from_pretrained(arguments.start, dtype=torch.float32)
    train_text, held_out = split_text(arguments.text)
    log.info("start %s", evaluate(model, tokenizer, held_out))
    if arguments.evaluate:
        return
    add_dropout(model, arguments.dropout)
    generator = torch.Generator().manual_seed(arguments.seed)
    stream = batches(encode_stories(train_text, tokenizer), arguments.batch, arguments.window, generator)
    learn_language(model, stream, arguments)
    log.info("language %s", evaluate(model, tokenizer, held_out))
    model.save_pretrained(arguments.out / "language")
    tokenizer.save_pretrained(arguments.out / "language")
    unlearn_loops(model, stream, arguments)
    model = model.to(torch.bfloat16)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    log.info("final %s", evaluate(model.float(), tokenizer, held_out))


if __name__ == "__main__":
    main()
