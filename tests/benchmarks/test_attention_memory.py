"""Attentions that a benchmark compares with ours, against dense attention, and the memory that it counts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import attention_memory  # noqa: E402
from attention_memory import (  # noqa: E402
    ATTENTIONS,
    OURS,
    ContextAttention,
    LiveMemory,
    SavedMemory,
    context_attentions,
    count_memory,
    make_model,
    replace_modules,
)

from unept_hf.kernels import cpu  # noqa: E402


HEIGHT, WIDTH, LEVELS = 7, 5, 3
CELLS = HEIGHT * WIDTH


def positions(levels):
    """Level, row and column of each cell, `(levels * HEIGHT * WIDTH,)` each."""
    shape = (levels, HEIGHT, WIDTH)
    return [grid.flatten() for grid in torch.meshgrid(*(torch.arange(size) for size in shape), indexing="ij")]


def random_states(query_levels):
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(2, 4, levels, HEIGHT, WIDTH, 6, dtype=torch.float64, generator=generator, requires_grad=True)
        for levels in (query_levels, LEVELS, LEVELS)
    ]


def dense_with_counts(query, key, value, counts):
    """Dense attention in which a query sees a key `counts` times, `(..., queries, keys)`."""
    weights = (query @ key.transpose(-1, -2)).exp() * counts
    return weights @ value / weights.sum(-1, keepdim=True)


def all_cells(query_levels):
    return torch.ones(query_levels * CELLS, LEVELS * CELLS)


def row_or_column(query_levels, axis):
    return (positions(query_levels)[axis][:, None] == positions(LEVELS)[axis]).double()


def half_rows_half_columns(query_levels):
    return torch.stack([row_or_column(query_levels, axis) for axis in (1, 1, 2, 2)])


def cross(query_levels):
    return (row_or_column(query_levels, 1) + row_or_column(query_levels, 2)).clamp(max=1)


def near_or_global(query_levels):
    queries, keys = (torch.arange(CELLS).repeat(levels) for levels in (query_levels, LEVELS))
    # A window of 12 for three levels, and six global cells for three levels: the first one and the last one.
    is_near = (queries[:, None] - keys).abs() <= 2
    is_global = [torch.isin(places, torch.tensor([0, CELLS - 1])) for places in (queries, keys)]
    return (is_near | is_global[0][:, None] | is_global[1]).double()


MASKS = {
    "dense": (attention_memory.dense, all_cells),
    "dense, fused": (attention_memory.fused_dense, all_cells),
    "strided": (attention_memory.strided, half_rows_half_columns),
    "criss-cross": (attention_memory.criss_cross, cross),
    "window and global": (
        lambda *states: attention_memory.window_and_global(*states, window=12, global_cells=6),
        near_or_global,
    ),
}


def assert_equal_with_gradients(attention, expected_attention, states):
    output, expected = attention(*states), expected_attention(*(state.flatten(2, 4) for state in states))
    expected = expected.unflatten(2, states[0].shape[2:5])
    torch.testing.assert_close(output, expected)
    direction = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    gradients, expected_gradients = (torch.autograd.grad(one, states, direction) for one in (output, expected))
    torch.testing.assert_close(gradients, expected_gradients)


@pytest.mark.parametrize("query_levels", [1, LEVELS])
@pytest.mark.parametrize("name", MASKS)
def test_attention_is_dense_attention_with_a_mask(name, query_levels):
    attention, mask = MASKS[name]
    counts = mask(query_levels)
    assert_equal_with_gradients(
        attention, lambda *states: dense_with_counts(*states, counts), random_states(query_levels)
    )


@pytest.mark.parametrize("query_levels", [1, LEVELS])
def test_hashing_attends_to_the_own_chunk_and_the_one_before(query_levels):
    states = random_states(query_levels)
    chunk, rounds, chunks = 8, 3, 14  # 105 cells make 13 chunks of 8, and one of 1
    torch.manual_seed(5)
    orders = attention_memory.sorted_by_hash(*(state.flatten(2, 4) for state in states[:2]), rounds, chunks)
    chunk_of_query, chunk_of_key = (order.argsort(-1) // -(-order.shape[-1] // chunks) for order in orders)
    distance = (chunk_of_query[..., None] - chunk_of_key[..., None, :]) % chunks
    counts = (distance <= 1).double().sum(2)
    assert 0 < counts.mean() < rounds

    def attention(*states):
        torch.manual_seed(5)
        return attention_memory.locality_sensitive(*states, chunk=chunk, rounds=rounds)

    assert_equal_with_gradients(attention, lambda *states: dense_with_counts(*states, counts), states)


def test_near_vectors_share_a_hash():
    query = torch.randn(1, 1, 64, 16, generator=torch.Generator().manual_seed(6))
    order, key_order = attention_memory.sorted_by_hash(query, 3 * query, rounds=2, chunks=8)
    assert torch.equal(order, key_order)  # the length of a vector does not count
    order, key_order = attention_memory.sorted_by_hash(query, -query, rounds=2, chunks=8)
    assert not torch.equal(order, key_order)


def pooling(height, width):
    """Means over the cells that a smaller grid shares out, `(LEVELS * height * width, LEVELS * CELLS)`."""

    def along(size, pooled):
        matrix = torch.zeros(pooled, size, dtype=torch.float64)
        for index in range(pooled):
            start, stop = index * size // pooled, -(-(index + 1) * size // pooled)
            matrix[index, start:stop] = 1 / (stop - start)
        return matrix

    return torch.kron(torch.eye(LEVELS), torch.kron(along(HEIGHT, height), along(WIDTH, width)))


@pytest.mark.parametrize("query_levels", [1, LEVELS])
def test_pooled_keys_are_means(query_levels):
    matrix = torch.cat([pooling(side, side) for side in (1, 3, 6, 8)])
    assert_equal_with_gradients(
        attention_memory.pooled_keys,
        lambda query, key, value: dense_with_counts(query, matrix @ key, matrix @ value, torch.ones(1)),
        random_states(query_levels),
    )


@pytest.mark.parametrize("query_levels", [1, LEVELS])
def test_dense_at_half_size_serves_two_by_two_queries(query_levels):
    matrix = pooling(4, 3)

    def expected(query, key, value):
        pooled_query = matrix[: query_levels * 12, : query_levels * CELLS] @ query
        output = dense_with_counts(pooled_query, matrix @ key, matrix @ value, torch.ones(1))
        level, row, column = positions(query_levels)
        return output[:, :, level * 12 + row // 2 * 3 + column // 2]

    assert_equal_with_gradients(attention_memory.dense_at_half_size, expected, random_states(query_levels))


def test_the_module_is_multi_head_attention():
    """In the encoder, keys have the positions that queries have; in the decoder, they are the plain values."""
    config = make_model(OURS, encoder_layers=1, decoder_layers=1).config
    module = ContextAttention(config, attention_memory.dense).double()
    size = config.hidden_size
    torch_module = nn.MultiheadAttention(size, config.num_attention_heads, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        projections = (module.q_proj, module.k_proj, module.value_proj)
        torch_module.in_proj_weight.copy_(torch.cat([projection.weight for projection in projections]))
        torch_module.in_proj_bias.copy_(torch.cat([projection.bias for projection in projections]))
        torch_module.out_proj.load_state_dict(module.output_proj.state_dict())
    values, queries = torch.randn(2, LEVELS * CELLS, size).double(), torch.randn(2, CELLS, size).double()
    shapes = [(HEIGHT, WIDTH)] * LEVELS
    for states, keys in ((values + 1, values + 1), (queries, values)):
        output, samples = module(states, values, shapes, None)
        assert samples is None
        torch.testing.assert_close(output, torch_module(states, keys, values)[0])


def test_live_memory_peaks_where_most_tensors_live():
    live = LiveMemory()
    with live:
        kept = torch.zeros(100)  # 400 bytes
        passing = torch.zeros(1000)
        passing[:10].add_(1)  # a view takes no memory
        del passing
        kept = kept + 1
    assert (live.bytes, live.peak) == (400, 4400)
    assert kept.numel() == 100


def test_saved_memory_counts_storages_once_and_no_parameters():
    model, images = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Unflatten(1, (1, 5))), torch.ones(4, 3)
    saved = SavedMemory([*model.parameters(), images], [model[1]])
    with saved:
        features = model(images)
        (features.exp() * features).sum()  # keeps both, the second of which ReLU has kept before
    assert (saved.bytes, saved.bytes_in_modules) == (2 * 80, 80)


needs_kernel = pytest.mark.skipif(cpu._missing is not None, reason="our operator has no kernel here")


@needs_kernel
@pytest.mark.parametrize("row", [OURS, "window and global (Longformer)", "hashing (Reformer)"])
def test_counted_memory_is_what_autograd_saves(row):
    options = {"encoder_layers": 1, "decoder_layers": 1, "query_grid_size": (8, 8), "num_labels": 5}
    counted = count_memory(make_model(row, **options), size=64, batch_size=2)
    model = make_model(row, **options)
    replace_modules(model, nn.Dropout, lambda module: attention_memory.ByteMaskDropout(module.p))
    images, labels = torch.randn(2, 3, 64, 64), torch.randint(0, 5, (2, 64, 64))
    targets = {"labels": labels, "boundary_map": labels % 2, "direction_map": labels.clone()}
    saved = SavedMemory([*model.parameters(), *model.buffers(), images, *targets.values()], context_attentions(model))
    with saved:
        model(images, **targets).loss  # noqa: B018
    assert (counted["saved"], counted["saved_in_attentions"]) == (saved.bytes, saved.bytes_in_modules)
    assert 0 < saved.bytes_in_modules < saved.bytes < counted["peak"]


@needs_kernel
def test_dense_attention_keeps_its_weights():
    """Two layers of encoder and decoder, whose weights are all that grows with the square of the cells."""
    dense, fused = (count_memory(make_model(row), size=256, batch_size=2) for row in ("dense", "dense, fused"))
    cells = 32 * 32
    weights = 4 * 2 * 8 * 2 * ((3 * cells) ** 2 + cells * 3 * cells)
    assert dense["saved"] - fused["saved"] == pytest.approx(weights, rel=0.02)
    assert dense["peak"] - fused["peak"] > weights


def test_unknown_rows_are_named():
    with pytest.raises(ValueError, match="There is no row sparse: the rows are dense, "):
        attention_memory.Arguments(rows=["sparse"])
    with pytest.raises(ValueError, match=r"multiples of 16, got \[100\]"):
        attention_memory.Arguments(sizes=[480, 100])
    assert all("/" not in row for row in [*ATTENTIONS, OURS])  # runs are files


@needs_kernel
@pytest.mark.slow
def test_steps_run_where_they_fit(tmp_path):
    command = [sys.executable, BENCHMARKS / "attention_memory.py", "--time", "--sizes", "64", "--batch_size", "1"]
    command += ["--rows", OURS, "dense", "--repeats", "1", "--runs", tmp_path / "runs", "--output", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    (file,) = tmp_path.glob("attention_memory-cpu-*.json")
    results = json.loads(file.read_text())
    # The process holds libraries too.
    assert {"seconds", "bytes"} == set(results["measured"][f"{OURS} 64"])
    for name, counted in results["counted"].items():
        assert results["measured"][name]["bytes"] > counted["peak"] > counted["saved"]
