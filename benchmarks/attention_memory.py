# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
How much memory does a training step take with deformable attention, and with other attentions in its place? Table 8 of
the paper, for the context encoder and the cross-attention of the decoder.

The step is the paper's: float32, two crops, 150 classes, ResNet-50, pointwise self-attention in the decoder. Memory is
counted from the shapes of the tensors, without computing them, so that any size fits on any machine and the result is
the same on each. `--time` also runs the steps on `--device`, where the counted memory allows it, each row and size in
its own process. Finished runs are kept in --runs.

    python benchmarks/attention_memory.py
    python benchmarks/attention_memory.py --time --device cuda --memory_limit 75
"""

import math
import resource
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from results_file import RESULTS, cpu_device, today, versions, write_results
from separate_runs import check_counts, read_result, run_all, write_result
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm
from training_memory import PAPER, measure_steps
from transformers import HfArgumentParser

from unept_hf import UneptConfig, UneptForSemanticSegmentation
from unept_hf.model.deformable_attention import attention_backend
from unept_hf.model.modeling_unept import UneptDeformableAttention


# Each attention takes queries `(batch, heads, query levels, height, width, head_dim)`, scaled already, and keys and
# values `(batch, heads, levels, height, width, head_dim)`, and returns the shape of the queries. All levels have the
# height and width of the queries, as with the dilated ResNet-50.


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of `(..., queries, head_dim)` to `(..., keys, head_dim)` that stores its weights."""
    return (query @ key.mT).softmax(-1) @ value


def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Every query attends to every cell. Source: Vaswani et al., "Attention Is All You Need", section 3.2."""
    return attend(query.flatten(2, 4), key.flatten(2, 4), value.flatten(2, 4)).reshape(query.shape)


def fused_dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """
    The same in tiles, whose weights are computed again in the backward. Source: Dao et al., "FlashAttention", 2022,
    which is later than the paper; PyTorch has it on CPUs and GPUs.
    """
    flat = (tensor.flatten(2, 4) for tensor in (query, key, value))
    return F.scaled_dot_product_attention(*flat, scale=1.0).reshape(query.shape)


def rows_of(tensor: Tensor) -> Tensor:
    """The cells of each row in all levels, `(batch, heads, height, levels * width, head_dim)`."""
    return tensor.transpose(2, 3).flatten(3, 4)


def columns_of(tensor: Tensor) -> Tensor:
    """The cells of each column in all levels, `(batch, heads, width, levels * height, head_dim)`."""
    return rows_of(tensor.transpose(3, 4))


def cells_of_rows(rows: Tensor, levels: int) -> Tensor:
    """The inverse of `rows_of`."""
    return rows.unflatten(3, (levels, -1)).transpose(2, 3)


def cells_of_columns(columns: Tensor, levels: int) -> Tensor:
    """The inverse of `columns_of`."""
    return cells_of_rows(columns, levels).transpose(3, 4)


def strided(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """
    Half of the heads attend to the row of the query in each level, the others to its column.

    Source: Child et al., "Generating Long Sequences with Sparse Transformers", section 4.3: strided attention with the
    width as stride and separate heads, without its causal mask.
    """
    (row_query, column_query), (row_key, column_key), (row_value, column_value) = (
        tensor.chunk(2, dim=1) for tensor in (query, key, value)
    )
    rows = attend(rows_of(row_query), rows_of(row_key), rows_of(row_value))
    columns = attend(columns_of(column_query), columns_of(column_key), columns_of(column_value))
    rows, columns = cells_of_rows(rows, query.shape[2]), cells_of_columns(columns, query.shape[2])
    return torch.cat((rows, columns), dim=1)


def criss_cross(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """
    Every head attends to the row and the column of the query in each level, with one softmax.

    Source: Huang et al., "CCNet: Criss-Cross Attention for Semantic Segmentation", section 3.2. The two layers stand
    for its two recurrences.
    """
    levels = query.shape[2]
    rows = rows_of(query) @ rows_of(key).mT
    columns = columns_of(query) @ columns_of(key).mT
    # The row and the column share the cells at the position of the query.
    is_own = torch.eye(query.shape[3], dtype=torch.bool, device=query.device).repeat(levels, key.shape[2])
    columns = columns.masked_fill(is_own, -torch.inf)
    largest = torch.maximum(
        cells_of_rows(rows.detach().amax(-1, keepdim=True), levels),
        cells_of_columns(columns.detach().amax(-1, keepdim=True), levels),
    )
    row_weights = (rows - rows_of(largest)).exp()
    column_weights = (columns - columns_of(largest)).exp()
    sums = cells_of_rows(row_weights.sum(-1, keepdim=True), levels)
    sums = sums + cells_of_columns(column_weights.sum(-1, keepdim=True), levels)
    from_rows = cells_of_rows(row_weights @ rows_of(value), levels)
    return (from_rows + cells_of_columns(column_weights @ columns_of(value), levels)) / sums


def window_and_global(query: Tensor, key: Tensor, value: Tensor, window: int = 512, global_cells: int = 64) -> Tensor:
    """
    Every query attends to a window of cells around its position in each level, row by row, and to evenly spaced global
    cells; the queries at the global positions attend to every cell.

    Source: Beltagy et al., "Longformer: The Long-Document Transformer", section 3.1, with its window of 512, in chunks
    as in its appendix A. The levels share the window and the global cells.
    """
    levels, cells = key.shape[2], key.shape[3] * key.shape[4]
    half = window // (2 * levels)
    chunks = math.ceil(cells / half)
    positions = global_positions(cells, levels, global_cells).to(query.device)
    query_rows, key_rows, value_rows = (tensor.flatten(3, 4) for tensor in (query, key, value))
    padding = chunks * half - cells

    # A chunk of the queries of all levels, its cells in all levels with a chunk on either side, and the global cells.
    queries = F.pad(query_rows, (0, 0, 0, padding)).unflatten(3, (chunks, half)).transpose(2, 3).flatten(3, 4)
    key_chunks, value_chunks = (
        F.pad(tensor, (0, 0, half, half + padding)).unfold(3, 3 * half, half).permute(0, 1, 3, 2, 5, 4).flatten(3, 4)
        for tensor in (key_rows, value_rows)
    )
    global_keys, global_values = (tensor[:, :, :, positions].flatten(2, 3) for tensor in (key_rows, value_rows))

    start = half * torch.arange(chunks, device=query.device)
    query_positions = start[:, None] + torch.arange(half, device=query.device)
    key_positions = (start[:, None] + torch.arange(-half, 2 * half, device=query.device))[:, None]
    is_seen = (query_positions[..., None] - key_positions).abs() <= half
    is_seen &= (key_positions >= 0) & (key_positions < cells) & ~torch.isin(key_positions, positions)
    is_seen = is_seen.repeat(1, query.shape[2], levels)  # (chunks, queries of a chunk, keys of a chunk)
    local_scores = (queries @ key_chunks.mT).masked_fill(~is_seen, -torch.inf)
    global_scores = (queries.flatten(2, 3) @ global_keys.mT).unflatten(2, (chunks, -1))
    weights = torch.cat((local_scores, global_scores), dim=-1).softmax(-1)
    local_weights, global_weights = weights.split((local_scores.shape[-1], global_scores.shape[-1]), dim=-1)
    output = (local_weights @ value_chunks).flatten(2, 3) + global_weights.flatten(2, 3) @ global_values
    output = output.unflatten(2, (chunks, query.shape[2], half)).transpose(2, 3).flatten(3, 4)[:, :, :, :cells]

    dense_queries = query_rows[:, :, :, positions].flatten(2, 3)
    from_all = attend(dense_queries, key.flatten(2, 4), value.flatten(2, 4))
    from_all = from_all.unflatten(2, (query.shape[2], len(positions)))
    return output.index_copy(3, positions, from_all).reshape(query.shape)


def global_positions(cells: int, levels: int, global_cells: int) -> Tensor:
    """Positions of the global cells in each level, int64."""
    return torch.linspace(0, cells - 1, min(cells, global_cells // levels)).long()


def locality_sensitive(query: Tensor, key: Tensor, value: Tensor, chunk: int = 64, rounds: int = 4) -> Tensor:
    """
    Queries and cells are sorted by a hash and cut into chunks; a query attends to its chunk and the one before it. The
    rounds, each with a hash of its own, are averaged by the sums of their weights.

    Source: Kitaev et al., "Reformer: The Efficient Transformer", section 2, with its chunks of 64 and four rounds.
    Without reversible layers. Queries and keys are projected separately, for the cross-attention too.
    """
    shape, (query, key, value) = query.shape, (tensor.flatten(2, 4) for tensor in (query, key, value))
    chunks = math.ceil(key.shape[2] / chunk)
    query_order, key_order = sorted_by_hash(query, key, rounds, chunks)
    queries, keys, values = (
        in_chunks(tensor, order, chunks)
        for tensor, order in ((query, query_order), (key, key_order), (value, key_order))
    )
    size = keys.shape[-2]
    is_key = (torch.arange(chunks * size, device=key.device) < key.shape[2]).view(chunks, size)
    keys, values = (torch.cat((tensor, tensor.roll(1, dims=3)), dim=-2) for tensor in (keys, values))
    is_key = torch.cat((is_key, is_key.roll(1, dims=0)), dim=-1)
    scores = (queries @ keys.mT).masked_fill(~is_key[:, None], -torch.inf)
    largest = scores.detach().amax(-1, keepdim=True)
    weights = (scores - largest).exp()
    sums = weights.sum(-1, keepdim=True)
    outputs, sums = weights @ values / sums, sums.log() + largest

    # (batch, heads, rounds, queries, ...), in the order of the queries
    inverse = query_order.argsort(-1)[..., None]
    outputs, sums = (tensor.flatten(3, 4)[:, :, :, : query.shape[2]] for tensor in (outputs, sums))
    outputs, sums = (tensor.gather(3, inverse.expand_as(tensor)) for tensor in (outputs, sums))
    return (outputs * sums.softmax(2)).sum(2).reshape(shape)


@torch.no_grad()
def sorted_by_hash(query: Tensor, key: Tensor, rounds: int, chunks: int) -> tuple[Tensor, Tensor]:
    """Indices that sort queries and keys by the hash of each round, int64 `(batch, heads, rounds, length)`."""
    rotations = torch.randn(rounds, query.shape[-1], max(chunks // 2, 1), dtype=query.dtype, device=query.device)
    orders = []
    for tensor in (query, key):
        rounds_of_tensor = []
        for rotation in rotations:  # one after the other, because the rotated vectors have an entry for each chunk
            rotated = tensor @ rotation
            hashes = torch.cat((rotated, -rotated), dim=-1).argmax(-1)
            rounds_of_tensor.append(hashes.sort(dim=-1, stable=True).indices)
        orders.append(torch.stack(rounds_of_tensor, dim=2))
    return orders[0], orders[1]


def in_chunks(tensor: Tensor, order: Tensor, chunks: int) -> Tensor:
    """`(batch, heads, length, head_dim)` in an order, padded: `(batch, heads, rounds, chunks, size, head_dim)`."""
    size = math.ceil(tensor.shape[2] / chunks)
    rounds = tensor[:, :, None].expand(-1, -1, order.shape[2], -1, -1)
    taken = rounds.gather(3, order[..., None].expand_as(rounds))
    return F.pad(taken, (0, 0, 0, chunks * size - tensor.shape[2])).unflatten(3, (chunks, size))


def pooled_keys(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """
    Every query attends to the means of the level's cells on grids of 1, 3, 6 and 8 cells a side.

    Source: Zhu et al., "Asymmetric Non-local Neural Networks for Semantic Segmentation", section 3.2.
    """
    keys, values = (
        torch.cat([resampled(tensor, (side, side)).flatten(2, 4) for side in (1, 3, 6, 8)], dim=2)
        for tensor in (key, value)
    )
    return attend(query.flatten(2, 4), keys, values).reshape(query.shape)


def resampled(tensor: Tensor, size: tuple[int, int]) -> Tensor:
    """Means on a grid of another height and width."""
    maps = tensor.movedim(-1, 3).flatten(0, 2)
    return F.adaptive_avg_pool2d(maps, size).unflatten(0, tensor.shape[:3]).movedim(3, -1)


def dense_at_half_size(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """
    Dense attention at 1/16 of the image's size, half of the levels' size; each result serves two by two queries.

    Source: Zheng et al., "Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective with Transformers"
    (SETR), section 3.2.
    """
    height, width = query.shape[3:5]
    output = dense(*(resampled(tensor, (-(-height // 2), -(-width // 2))) for tensor in (query, key, value)))
    output = output.repeat_interleave(2, 3).repeat_interleave(2, 4)
    return output[:, :, :, :height, :width]


class ContextAttention(nn.Module):
    """Multi-head attention in place of `UneptDeformableAttention`, with its arguments."""

    def __init__(self, config: UneptConfig, attention: Callable[[Tensor, Tensor, Tensor], Tensor]):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.attention = attention
        self.q_proj, self.k_proj, self.value_proj, self.output_proj = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4)
        )

    def forward(self, hidden_states, value_states, spatial_shapes, reference_points, output_attentions=False):
        # In the encoder, queries are the cells with their positions, which keys need too.
        keys = hidden_states if hidden_states.shape == value_states.shape else value_states
        query, key, value = (
            # (batch, heads, levels, height, width, head_dim)
            projection(states).unflatten(1, (-1, *spatial_shapes[0])).unflatten(-1, (self.num_heads, -1)).movedim(4, 1)
            for projection, states in (
                (self.q_proj, hidden_states),
                (self.k_proj, keys),
                (self.value_proj, value_states),
            )
        )
        output = self.attention(query * query.shape[-1] ** -0.5, key, value)
        return self.output_proj(output.movedim(1, 4).flatten(4).flatten(1, 3)), None


OURS = "deformable (ours)"
ATTENTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "dense": dense,
    "dense, fused": fused_dense,
    "strided (Sparse Transformer)": strided,
    "window and global (Longformer)": window_and_global,
    "hashing (Reformer)": locality_sensitive,
    "criss-cross (CCNet)": criss_cross,
    "pooled keys (ANL)": pooled_keys,
    "dense at stride 16 (SETR)": dense_at_half_size,
}
OURS_DEIT = f"{OURS}, DeiT-B"
ROWS = [*ATTENTIONS, OURS, OURS_DEIT]
# The paper's figures for crops of this size.
PAPER_SIZE = 480
PAPER_ROWS = {OURS: PAPER["unept-resnet50"], OURS_DEIT: PAPER["unept-deit-base"]}


class ByteMaskDropout(nn.Module):
    """Dropout as on a GPU, which keeps a byte for each value; on a CPU, `nn.Dropout` keeps four."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, features: Tensor) -> Tensor:
        return torch.native_dropout(features, self.p, self.training)[0]


def replace_modules(model: nn.Module, kind: type[nn.Module], replacement: Callable[[nn.Module], nn.Module]) -> None:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, kind):
                setattr(module, name, replacement(child))


def make_model(row: str, **options) -> UneptForSemanticSegmentation:
    """The model of a row with random weights, in training mode; `options` replace fields of its preset."""
    preset = "unept-deit-base" if row == OURS_DEIT else "unept-resnet50"
    options = {"num_labels": 150, "decoder_self_attention": "pointwise"} | options
    model = UneptForSemanticSegmentation.from_preset(preset, **options)
    if row in ATTENTIONS:
        replace_modules(
            model, UneptDeformableAttention, lambda module: ContextAttention(model.config, ATTENTIONS[row])
        )
    return model.train()


class LiveMemory(TorchDispatchMode):
    """Adds up the storages that operators make, while they live."""

    def __init__(self):
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        outputs = function(*arguments, **(options or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        return outputs

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = storage.nbytes()
            self.bytes += storage.nbytes()
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self.remove, storage._cdata)

    def remove(self, key: int) -> None:
        self.bytes -= self.sizes.pop(key)


class SavedMemory(saved_tensors_hooks):
    """
    Adds up the storages that autograd saves for the backward, parameters and inputs (`others`) aside, and those among
    them that it saves within `modules`.
    """

    def __init__(self, others: list[Tensor], modules: list[nn.Module]):
        super().__init__(self.pack, lambda tensor: tensor)
        self.others = {tensor.untyped_storage()._cdata for tensor in others}
        self.bytes = self.bytes_in_modules = 0
        self.is_inside = False
        self.seen: dict[int, torch.UntypedStorage] = {}  # holds them, so that no key is used again
        for module in modules:
            module.register_forward_pre_hook(lambda *arguments: self.set_inside(True))
            module.register_forward_hook(lambda *arguments: self.set_inside(False))

    def set_inside(self, is_inside: bool) -> None:
        self.is_inside = is_inside

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.others and storage._cdata not in self.seen:
            self.seen[storage._cdata] = storage
            self.bytes += storage.nbytes()
            self.bytes_in_modules += self.is_inside * storage.nbytes()
        return tensor.detach()  # the graph that an output belongs to would else hold the output, and itself


def context_attentions(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, (ContextAttention, UneptDeformableAttention))]


def count_memory(model: UneptForSemanticSegmentation, size: int, batch_size: int) -> dict[str, int]:
    """
    The number of parameters, and the bytes of a training step with square crops, from the shapes alone: what autograd
    saves, what it saves in the context attentions, and the peak, which includes parameters, gradients, the two states
    of AdamW and everything that lives for a moment, but not the workspace of libraries.

    The model changes: its dropout becomes that of GPUs.
    """
    replace_modules(model, nn.Dropout, lambda module: ByteMaskDropout(module.p) if module.p else module)
    # Fake tensors have shapes and a device, and no memory. Our operator needs the device to be one with a kernel.
    mode = FakeTensorMode()
    tensors = {name: mode.from_tensor(tensor) for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    optimizer_states = 2 * sum(tensor.nbytes for tensor in tensors.values() if tensor.requires_grad)
    with mode, attention_backend("cpu"):
        images = torch.empty(batch_size, 3, size, size)
        names = ("labels", "boundary_map", "direction_map")
        targets = {name: torch.empty(batch_size, size, size, dtype=torch.int64) for name in names}
        others = [*tensors.values(), images, *targets.values()]

        def loss_of_step():
            return torch.func.functional_call(model, tensors, (images,), targets).loss

        saved = SavedMemory(others, context_attentions(model))
        with saved:
            loss_of_step()
        live = LiveMemory()
        for tensor in others:
            live.add(tensor)
        with live:
            loss_of_step().backward()
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "saved": saved.bytes,
        "saved_in_attentions": saved.bytes_in_modules,
        "peak": live.peak + optimizer_states,
    }


@dataclass
class Arguments:
    """What to count and to measure."""

    rows: list[str] = field(default_factory=lambda: list(ROWS), metadata={"help": "Attentions."})
    sizes: list[int] = field(
        default_factory=lambda: [PAPER_SIZE, 768, 1024], metadata={"help": "Heights and widths of the crops."}
    )
    batch_size: int = field(default=2, metadata={"help": "Crops in a step."})
    time: bool = field(default=False, metadata={"help": "Also run the steps, for their time and their real memory."})
    device: Literal["cpu", "cuda"] = field(default="cpu", metadata={"help": "--time: where to run them."})
    repeats: int = field(default=3, metadata={"help": "--time: steps, after one that is not measured."})
    memory_limit: float = field(default=10, metadata={"help": "--time: GiB; larger steps are only counted."})
    runs: Path = field(default=Path("runs/attention_memory"), metadata={"help": "Folder of finished runs."})
    output: Path = field(default=RESULTS, metadata={"help": "Folder of the tables."})
    worker: str | None = field(default=None, metadata={"help": "Make one run, of this name, in this process."})

    def __post_init__(self):
        check_counts({"batch_size": self.batch_size, "repeats": self.repeats})
        if unknown := [row for row in self.rows if row not in ROWS]:
            raise ValueError(f"There is no row {', '.join(unknown)}: the rows are {', '.join(ROWS)}.")
        if odd := [size for size in self.sizes if size < 16 or size % 16]:
            raise ValueError(f"sizes must be positive multiples of 16, got {odd}.")

    def settings(self) -> dict:
        """The settings that must be equal for runs to be comparable."""
        names = ("device", "batch_size", "repeats", "memory_limit") if self.time else ("batch_size",)
        return {name: getattr(self, name) for name in names}


def run(name: str, arguments: Arguments) -> None:
    """Runs the steps of `<row> <size>`, and stores their time and memory."""
    row, _, size = name.rpartition(" ")
    if arguments.device == "cpu":
        limit = int(arguments.memory_limit * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    measured = measure_steps(make_model(row), device, int(size), arguments.batch_size, arguments.repeats)
    write_result(arguments.runs, name, arguments.settings(), measured)


def measure(counted: dict[str, dict[str, int]], arguments: Arguments) -> dict[str, dict[str, float]]:
    """Time and memory of the steps that fit, each of which runs in its own process."""
    settings = arguments.settings()
    names = [name for name, found in counted.items() if found["peak"] <= arguments.memory_limit * 2**30]
    options = [f"--{name}={value}" for name, value in ({"time": True} | settings).items()]
    commands = {
        name: [f"--worker={name}", f"--runs={arguments.runs}", *options]
        for name in names
        if read_result(arguments.runs, name, settings) is None
    }
    # A step can take more than was counted, and run out of memory.
    run_all(arguments.runs, commands, may_fail=True)
    return {name: found for name in names if (found := read_result(arguments.runs, name, settings)) is not None}


def tables(
    counted: dict[str, dict[str, int]], measured: dict[str, dict[str, float]], arguments: Arguments
) -> list[str]:
    lines = []
    for size in arguments.sizes:
        columns = ["parameters, M", "kept for the backward, GB", "of that in the attentions, GB", "peak, GB"]
        columns += ["paper, GB"] if size == PAPER_SIZE else []
        columns += ["measured peak, GB", "step, s"] if arguments.time else []
        lines += ["", f"## {size} x {size} pixels", "", f"| attention | {' | '.join(columns)} |"]
        lines.append("| --- |" + " ---: |" * len(columns))
        for row in arguments.rows:
            found = counted[f"{row} {size}"]
            cells = [f"{found['parameters'] / 1e6:.1f}"]
            cells += [f"{found[name] / 1e9:.2f}" for name in ("saved", "saved_in_attentions", "peak")]
            if size == PAPER_SIZE:
                cells.append(f"{PAPER_ROWS[row]}" if row in PAPER_ROWS else "-")
            if run := measured.get(f"{row} {size}"):
                cells += [f"{run['bytes'] / 1e9:.2f}", f"{run['seconds']:.3f}"]
            elif arguments.time:
                cells += ["counted only", "-"]
            lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    (arguments,) = HfArgumentParser(Arguments, description=__doc__).parse_args_into_dataclasses()
    if arguments.worker:
        return run(arguments.worker, arguments)
    names = [f"{row} {size}" for size in arguments.sizes for row in arguments.rows]
    counted = {}
    for name in tqdm(names, desc="Counting"):
        row, _, size = name.rpartition(" ")
        counted[name] = count_memory(make_model(row), int(size), arguments.batch_size)

    name, title, measured, facts = "attention_memory", "Memory of the context attention", {}, {}
    lines = [
        "Gigabytes (10^9 bytes), counted from the shapes of the tensors of one step in float32. The peak includes the "
        "parameters, their gradients and the states of AdamW, but not the workspace of libraries. The paper's column "
        "is from the README of its repository."
    ]
    if arguments.time:
        measured = measure(counted, arguments)
        name += f"-{arguments.device}"
        facts["device"] = torch.cuda.get_device_name() if arguments.device == "cuda" else cpu_device()
        kind = "allocated by torch" if arguments.device == "cuda" else "resident, libraries included"
        lines[0] += f" The measured peak is {kind}; seconds are the median of the steps."
    facts |= versions("torch", "transformers", "timm") | {"date": today()} | arguments.settings()
    lines += tables(counted, measured, arguments)
    write_results(arguments.output, name, title, facts, lines, counted=counted, measured=measured)


if __name__ == "__main__":
    main()
