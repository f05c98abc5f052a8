# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""Deformable attention: each kernel against plain PyTorch in float64, and the operators and backends around it."""

import ctypes
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from unept_hf import UneptConfig, UneptForSemanticSegmentation
from unept_hf.accelerate import accelerate_transformers
from unept_hf.kernels import cpu
from unept_hf.kernels import triton as triton_kernel
from unept_hf.model import deformable_attention as attention
from unept_hf.model.deformable_attention import (
    attention_backend,
    deformable_attention,
    multi_scale_deformable_attention,
    sampling_locations_and_weights,
)


ROOT = Path(__file__).parents[2]
# The kernel under test. test_triton_kernel.py runs parts of this file for the other one.
BACKEND = os.environ.get("UNEPT_TEST_BACKEND", "cpu")
KERNEL = {"cpu": cpu, "triton": triton_kernel}[BACKEND]
DEVICE = triton_kernel._DEVICE if BACKEND == "triton" else "cpu"
INTERPRETED = BACKEND == "triton" and DEVICE == "cpu"
# What is taken for the device by itself, but that on a CPU the interpreter must be asked for.
AUTOMATIC = "triton" if INTERPRETED else "auto"
FIXTURES = Path(__file__).parents[1] / "fixtures" / "attention.safetensors"
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 2e-2}
LIBRARIES = [path for path in sorted(Path(cpu.__file__).parent.glob("*.so")) if ctypes.CDLL(str(path))]
needs_kernel = pytest.mark.skipif(KERNEL._missing is not None, reason=f"no {BACKEND} kernel: {KERNEL._missing}")


def draw(
    batch=2,
    spatial_shapes=((5, 7), (3, 4)),
    queries=11,
    heads=3,
    head_dim=8,
    points=4,
    dtype=torch.float32,
    seed=0,
    contiguous=True,
):
    """Arguments of `deformable_attention`. About a third of the samples lies outside, some at odd places."""
    generator = torch.Generator().manual_seed(seed)
    levels = len(spatial_shapes)
    cells = sum(height * width for height, width in spatial_shapes)
    value = torch.randn(batch, cells, heads, head_dim, generator=generator).to(dtype)
    reference_points = torch.rand(1, queries, 1, 2, generator=generator)
    offsets = 2 * torch.randn(batch, queries, heads, levels, points, 2, generator=generator).to(dtype)
    logits = torch.randn(batch, queries, heads, levels, points, generator=generator).to(dtype)
    if not contiguous:
        value = value.transpose(1, 2).contiguous().transpose(1, 2)
        offsets = offsets.movedim(-1, 0).contiguous().movedim(0, -1)
        logits = logits.transpose(1, 3).contiguous().transpose(1, 3)
    if dtype == torch.float64:
        reference_points = reference_points.double()
    tensors = [tensor.to(DEVICE) for tensor in (value, reference_points, offsets, logits)]
    return tensors[0], list(spatial_shapes), *tensors[1:]


def plain_form(arguments):
    """The same samples as arguments of `multi_scale_deformable_attention`."""
    value, spatial_shapes, reference_points, offsets, logits = arguments
    locations, weights = sampling_locations_and_weights(spatial_shapes, reference_points, offsets, logits)
    return value, spatial_shapes, locations, weights


def run(function, arguments, grad_output=None, dtype=None):
    """Output and gradients of all tensors but the reference points, in float64."""
    leaves = [
        tensor.detach().to(dtype or tensor.dtype).requires_grad_() if isinstance(tensor, torch.Tensor) else tensor
        for tensor in arguments
    ]
    output = function(*leaves)
    if grad_output is None:
        grad_output = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    inputs = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    gradients = torch.autograd.grad(output, inputs, grad_output.to(output.dtype))
    return grad_output, [tensor.double() for tensor in (output.detach(), *gradients)]


def relative_error(got, expected):
    return ((got - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def assert_close_to_oracle(arguments, tolerance):
    for function, inputs in (
        (deformable_attention, arguments),
        (multi_scale_deformable_attention, plain_form(arguments)),
    ):
        with attention_backend(BACKEND):
            grad_output, got = run(function, inputs)
        _, expected = run(function, inputs, grad_output, torch.float64)
        for index, (tensor, oracle) in enumerate(zip(got, expected)):
            assert tensor.shape == oracle.shape
            # Gradients of offsets were rounded, and may cancel in the sum that a reference point's is.
            if function is deformable_attention and index == 2 and inputs[3].dtype != torch.float32:
                continue
            assert relative_error(tensor, oracle) <= tolerance or torch.allclose(tensor, oracle, atol=1e-6)


@pytest.fixture(params=[True] if BACKEND == "cpu" else [True, False], ids=lambda on: "deterministic" if on else "free")
def nan_filled(request):
    """Memory that is not written to is full of NaN, where sums are to be deterministic."""
    # Asked for or not, the GPU kernel computes its gradients differently.
    torch.use_deterministic_algorithms(request.param)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(
    params=LIBRARIES if BACKEND == "cpu" else [None], ids=lambda path: path and path.stem.rpartition("_")[2]
)
def library(request, monkeypatch):
    """Each library that was built."""
    if request.param is None:
        return
    library = ctypes.CDLL(str(request.param))
    library.unept_workspace_size.restype = ctypes.c_int64
    monkeypatch.setattr(cpu, "_library", library)


shapes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4 if BACKEND == "cpu" else 2)
draws = st.builds(
    draw,
    batch=st.integers(0, 3 if BACKEND == "cpu" else 2),
    spatial_shapes=shapes,
    queries=st.sampled_from([1, 2, 9] if INTERPRETED else [1, 2, 9, 40]),
    heads=st.integers(1, 4 if BACKEND == "cpu" else 2),
    head_dim=st.sampled_from([1, 3, 8, 12, 16, 20, 32, 48, 64, 100]),
    points=st.integers(1, 17),
    dtype=st.sampled_from([torch.float32, torch.bfloat16] + [torch.float16] * (BACKEND == "triton")),
    seed=st.integers(0, 2**16),
    contiguous=st.booleans(),
)


@needs_kernel
@pytest.mark.floor
def test_kernel_equals_the_oracle(library, nan_filled):
    # Triton interprets slowly, and compiles for every shape.
    @settings(max_examples=60 if BACKEND == "cpu" else 8, deadline=None, derandomize=True, database=None)
    @given(arguments=draws)
    def check(arguments):
        assert_close_to_oracle(arguments, TOLERANCE[arguments[0].dtype])

    check()


@needs_kernel
def test_kernel_equals_the_oracle_with_more_queries_than_a_task_takes():
    assert_close_to_oracle(draw(batch=1, queries=1100, heads=2, points=2), TOLERANCE[torch.float32])


@pytest.mark.floor
@pytest.mark.parametrize("backend", ["torch", pytest.param(BACKEND, marks=needs_kernel)])
@pytest.mark.parametrize("case", sorted(json.loads(safe_open(FIXTURES, "pt").metadata()["spatial_shapes"])))
def test_equals_the_reference(case, backend):
    with safe_open(FIXTURES, "pt") as file:
        spatial_shapes = [tuple(shape) for shape in json.loads(file.metadata()["spatial_shapes"])[case]]
        names = [name for name in file.keys() if name.startswith(case)]  # noqa: SIM118
    tensors = load_file(FIXTURES, device=DEVICE)
    tensors = {name.partition(".")[2]: tensors[name] for name in names}
    arguments = (tensors["value"], spatial_shapes, tensors["locations"], tensors["weights"])
    with attention_backend(backend):
        _, got = run(multi_scale_deformable_attention, arguments, tensors["upstream"])
    for name, tensor in zip(("output", "grad_value", "grad_locations", "grad_weights"), got):
        # Between two cells the gradient of a location is that of either.
        if (case, name) != ("special_locations_d8_p4", "grad_locations"):
            torch.testing.assert_close(tensor, tensors[name].double(), rtol=1e-5, atol=1e-4)
            assert relative_error(tensor, tensors[name].double()) <= TOLERANCE[torch.float32] or case.startswith("all")


@pytest.mark.parametrize("backend", ["torch", pytest.param(BACKEND, marks=needs_kernel)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e9, 1e5])
def test_samples_that_are_nowhere_count_as_zero(bad, backend):
    value, spatial_shapes, locations, weights = plain_form(draw(queries=5, heads=2))
    nowhere = (torch.rand(weights.shape, generator=torch.Generator().manual_seed(2)) < 0.3).to(DEVICE)
    bad_locations = locations.masked_fill(nowhere[..., None], bad)
    with attention_backend(backend):
        _, got = run(multi_scale_deformable_attention, (value, spatial_shapes, bad_locations, weights))
        far = locations.masked_fill(nowhere[..., None], -2.0)
        _, expected = run(multi_scale_deformable_attention, (value, spatial_shapes, far, weights))
    for tensor, reference in zip(got, expected):
        torch.testing.assert_close(tensor, reference)
    assert not got[2][nowhere].any()
    assert not got[3][nowhere].any()


EMPTY = {
    "levels": {"spatial_shapes": ()},
    "points": {"points": 0},
    "queries": {"queries": 0},
    "batch": {"batch": 0},
    "heads": {"heads": 0},
    "channels": {"head_dim": 0},
    "levels and points": {"spatial_shapes": (), "points": 0},
}


@pytest.mark.floor
@pytest.mark.parametrize("backend", ["auto", "torch", pytest.param(BACKEND, marks=needs_kernel)])
@pytest.mark.parametrize("nothing", EMPTY)
def test_zero_of_anything_gives_zeros(nothing, backend, nan_filled):
    arguments = draw(**EMPTY[nothing])
    # What is left over counts for nothing, whatever it is.
    for tensor in (arguments[0], *arguments[3:]):
        tensor[tensor > 1] = float("nan")
    value, offsets = arguments[0], arguments[3]
    with attention_backend(backend):
        for function, inputs in ((deformable_attention, arguments), (multi_scale_deformable_attention, None)):
            inputs = inputs or plain_form(arguments)
            _, (output, *gradients) = run(function, inputs)
            assert output.shape == (len(value), offsets.shape[1], value.shape[2] * value.shape[3])
            given = [tensor for tensor in inputs if isinstance(tensor, torch.Tensor)]
            assert [gradient.shape for gradient in gradients] == [tensor.shape for tensor in given]
            assert not output.any() and not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("backend", ["torch", pytest.param(BACKEND, marks=needs_kernel)])
def test_an_empty_level_counts_for_nothing(backend):
    arguments = draw(spatial_shapes=[(0, 4), (4, 4)], points=3)
    value, spatial_shapes, locations, weights = plain_form(arguments)
    with attention_backend(backend):
        output = multi_scale_deformable_attention(value, spatial_shapes, locations, weights)
        alone = multi_scale_deformable_attention(
            value, spatial_shapes[1:], locations[:, :, :, 1:].contiguous(), weights[:, :, :, 1:].contiguous()
        )
    torch.testing.assert_close(output, alone)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_do_not_depend_on_the_number_of_threads(dtype):
    threads = torch.get_num_threads()
    arguments = draw(batch=1, queries=1300, heads=2, head_dim=16, dtype=dtype)
    results = []
    try:
        for number in (1, 2, 3, 8, 1):
            torch.set_num_threads(number)
            results.append(run(deformable_attention, arguments)[1])
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(tensor, first) for tensor, first in zip(result, results[0]))


@pytest.fixture
def four_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(threads)


class LatePool(ThreadPoolExecutor):
    """Work that begins late. The first interrupts the main thread twice before."""

    def __init__(self):
        super().__init__(3)
        self.futures = []

    def submit(self, function, *args):
        interrupts = not self.futures

        def late():
            for _ in range(2):
                time.sleep(0.1)
                if interrupts:
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
            time.sleep(0.1)
            return function(*args)

        self.futures.append(super().submit(late))
        return self.futures[-1]


@needs_kernel
@pytest.mark.floor
@pytest.mark.skipif(BACKEND != "cpu", reason="about the threads of the CPU kernel")
@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals of POSIX")
@pytest.mark.parametrize("backward", [False, True])
def test_an_interrupted_call_leaves_no_work_behind(backward, monkeypatch, four_threads):
    def interrupt(number, frame):
        raise KeyboardInterrupt

    arguments = plain_form(draw(queries=200))
    arguments = (*arguments[:2], None, *arguments[2:])
    grad_output = torch.ones_like(cpu.forward(*arguments))
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with LatePool() as pool:
            monkeypatch.setattr(cpu, "_pool", pool)
            done = None
            try:
                cpu.backward(grad_output, *arguments) if backward else cpu.forward(*arguments)
            except KeyboardInterrupt:
                done = [future.done() for future in pool.futures]
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert done == [True] * 3


@needs_kernel
@pytest.mark.skipif(BACKEND != "cpu", reason="about the threads of the CPU kernel")
def test_work_owns_the_memory_that_it_touches(monkeypatch, four_threads):
    """An interrupt may also come within `submit`, so that nobody knows of the work."""
    work = []

    class LostPool:
        def submit(self, function, *args):
            work.append(lambda: function(*args))
            raise KeyboardInterrupt

    monkeypatch.setattr(cpu, "_pool", LostPool())
    value, spatial_shapes, locations, weights = plain_form(draw(queries=200))
    tensors = cpu._prepare(value, None, locations, weights)
    tensors["output"] = torch.empty(2, 200, 24)
    output = weakref.ref(tensors["output"])
    with pytest.raises(KeyboardInterrupt):
        cpu._run("unept_forward", tensors, spatial_shapes)
    del tensors
    assert output() is not None
    work.pop()()
    assert output() is None


@needs_kernel
def test_float32_locations_with_half_precision_values():
    arguments = draw(dtype=torch.bfloat16, spatial_shapes=[(60, 60)])
    value, spatial_shapes, locations, weights = plain_form(arguments)
    assert locations.dtype == torch.float32
    with attention_backend(BACKEND):
        output = multi_scale_deformable_attention(value, spatial_shapes, locations, weights)
    assert output.dtype == torch.bfloat16
    oracle = multi_scale_deformable_attention(value.double(), spatial_shapes, locations.double(), weights.double())
    assert relative_error(output.double(), oracle) < 4e-3


def operator_inputs(dtype=torch.float32, requires_grad=True, **kwargs):
    value, spatial_shapes, *rest = draw(dtype=dtype, **kwargs)
    sizes = [size for shape in spatial_shapes for size in shape]
    plain = plain_form((value, spatial_shapes, *rest))
    yield "deformable_attention", (value, sizes, *rest)
    yield "multi_scale_deformable_attention", (value, sizes, *plain[2:])


def leaves(inputs):
    return [item.detach().requires_grad_() if isinstance(item, torch.Tensor) else item for item in inputs]


@pytest.mark.floor
def test_gradients_of_the_operators():
    for name, inputs in operator_inputs(torch.float64, batch=1, queries=2, heads=2, head_dim=3, points=2):
        assert torch.autograd.gradcheck(getattr(torch.ops.unept_hf, name), leaves(inputs))


@needs_kernel
def test_gradient_of_the_reference_points():
    for reference_shape in ((1, 11, 1, 2), (2, 11, 2, 2)):
        value, spatial_shapes, reference_points, offsets, logits = draw()
        reference_points = reference_points.expand(reference_shape).contiguous()
        arguments = (value, spatial_shapes, reference_points, offsets, logits)
        with attention_backend(BACKEND):
            grad_output, got = run(deformable_attention, arguments)
        _, expected = run(deformable_attention, arguments, grad_output, torch.float64)
        assert relative_error(got[2], expected[2]) <= TOLERANCE[torch.float32]


@pytest.mark.floor
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_operators_keep_their_contract(dtype):
    # Which sizes do not change; they are run again and again.
    for name, inputs in operator_inputs(dtype, queries=3, heads=2, head_dim=4, points=2):
        operator = getattr(torch.ops.unept_hf, name).default
        with attention_backend(BACKEND):
            torch.library.opcheck(operator, leaves(inputs))
            grad_output = torch.ones_like(operator(*inputs))
            if dtype == torch.float64 or KERNEL._missing is not None:
                continue
            torch.library.opcheck(getattr(torch.ops.unept_hf, f"{name}_backward").default, (grad_output, *inputs))


def test_the_backward_operator_only_runs_kernels():
    for name, inputs in operator_inputs(torch.float64):
        operator = getattr(torch.ops.unept_hf, f"{name}_backward")
        with pytest.raises(RuntimeError, match=r"No kernel runs for torch.float64 .*: differentiate the forward"):
            operator(torch.ones(1), *inputs)


class Layer(torch.nn.Module):
    def forward(self, value, offsets, logits):
        height, width = value.shape[1:3]
        reference_points = torch.full((1, offsets.shape[1], 1, 2), 0.4, device=value.device)
        value = value.flatten(1, 2)
        return deformable_attention(value, [(height, width)], reference_points, offsets, logits)


def layer_inputs(batch, height, width, queries):
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(batch, height, width, 2, 8, generator=generator).to(DEVICE),
        torch.randn(batch, queries, 2, 1, 4, 2, generator=generator).to(DEVICE),
        torch.randn(batch, queries, 2, 1, 4, generator=generator).to(DEVICE),
    )


@pytest.mark.parametrize("backend", ["auto", pytest.param(BACKEND, marks=needs_kernel), "torch"])
def test_compiled_and_exported_graphs(backend):
    layer, inputs, others = Layer(), layer_inputs(2, 5, 6, 9), layer_inputs(3, 7, 4, 13)
    with attention_backend(backend):
        compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
        gradients = []
        for function in (layer, compiled):
            value = inputs[0].clone().requires_grad_()
            function(value, *inputs[1:]).square().sum().backward()
            gradients.append(value.grad)
        torch.testing.assert_close(*gradients)
        torch.testing.assert_close(compiled(*others), layer(*others))

        # Named sizes would do, but for torch 2.11, which cannot tell that 8 * queries <= 16 * queries.
        batch = queries = torch.export.Dim.DYNAMIC
        height, width = torch.export.Dim("height", min=2, max=64), torch.export.Dim("width", min=2, max=64)
        shapes = ({0: batch, 1: height, 2: width}, {0: batch, 1: queries}, {0: batch, 1: queries})
        program = torch.export.export(layer, inputs, dynamic_shapes=shapes)
    torch.testing.assert_close(program.module()(*others), layer(*others))
    # Programs that know no operator of ours can take all but what was asked for by name.
    assert ("unept_hf" in str(program.graph)) == (backend == BACKEND)


@needs_kernel
@pytest.mark.floor
def test_compiled_graphs_follow_the_choice_of_their_thread():
    layer, inputs = Layer(), layer_inputs(2, 5, 6, 9)
    graphs = []

    def keep_graph(graph, example_inputs):
        graphs.append(str(graph.graph))
        return graph

    compiled = torch.compile(layer, fullgraph=True, backend=keep_graph)

    def run_thread(backend):
        with attention_backend(backend):
            outputs.append(compiled(*inputs))

    outputs = []
    for backend in (BACKEND, "torch", BACKEND):
        thread = threading.Thread(target=run_thread, args=(backend,))
        thread.start()
        thread.join()
    assert ["unept_hf" in graph for graph in graphs] == [True, False]
    torch.testing.assert_close(outputs[1], outputs[0])
    assert torch.equal(outputs[2], outputs[0])


@pytest.mark.floor
def test_inductor_finds_no_decomposition():
    """It refuses to call an operator that has one where the environment variable CI is set."""
    names = ("deformable_attention", "multi_scale_deformable_attention")
    operators = [getattr(torch.ops.unept_hf, name + end).default for name in names for end in ("", "_backward")]
    assert not torch._decomp.get_decompositions(operators)


def test_autocast_takes_the_value_and_leaves_the_locations():
    arguments = draw(spatial_shapes=[(60, 60)])
    for backend in (AUTOMATIC, "torch"):
        with attention_backend(backend), torch.autocast(DEVICE, torch.bfloat16):
            output = deformable_attention(*arguments)
        assert output.dtype == torch.bfloat16
        assert relative_error(output.double(), deformable_attention(*arguments).double()) < 4e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a | {"value": a["value"][0]}, r"value \(47, 3, 8\)"),
        (lambda a: a | {"value": a["value"][:, 1:]}, r"value \(2, 46, 3, 8\).* with 47 cells"),
        (lambda a: a | {"value": a["value"].to("meta")}, r"value .* on meta, sampling_offsets .* on cpu"),
        (
            lambda a: a | {"sampling_offsets": a["sampling_offsets"][..., :1]},
            r"_offsets \(2, 11, 3, 2, 4, 1\)",
        ),
        (lambda a: a | {"sampling_offsets": a["sampling_offsets"][0]}, r"sampling_offsets \(11, 3, 2, 4, 2\)"),
        (lambda a: a | {"attention_logits": a["attention_logits"][..., 1:]}, r"attention_logits \(2, 11, 3, 2, 3\)"),
        (lambda a: a | {"spatial_shapes": [(47, 1)]}, r"spatial_shapes \[\(47, 1\)\]"),
        (lambda a: a | {"reference_points": a["reference_points"][:, 1:]}, r"reference_points \(1, 10, 1, 2\)"),
        (lambda a: a | {"reference_points": a["reference_points"][0]}, r"reference_points \(11, 1, 2\)"),
        (lambda a: a | {"reference_points": a["reference_points"].to("meta")}, "reference_points .* on meta"),
    ],
)
def test_shapes_and_devices_are_checked(change, message):
    names = ("value", "spatial_shapes", "reference_points", "sampling_offsets", "attention_logits")
    with pytest.raises(ValueError, match=message):
        deformable_attention(**change(dict(zip(names, draw()))))


def test_backends_are_chosen_by_name(monkeypatch):
    with attention_backend("cpu"), pytest.raises(RuntimeError, match=r"'cpu' cannot run: value is torch.float64"):
        deformable_attention(*draw(dtype=torch.float64))
    with attention_backend("triton"), pytest.raises(RuntimeError, match="'triton' cannot run: "):
        deformable_attention(*draw())
    with attention_backend("cuda"), pytest.raises(RuntimeError, match="none of auto, torch, cpu, triton"):
        deformable_attention(*draw())
    monkeypatch.setattr(cpu, "_missing", "nothing was built")
    with attention_backend("cpu"), pytest.raises(RuntimeError, match="'cpu' cannot run: nothing was built"):
        deformable_attention(*draw())


def test_automatic_choice_falls_back_and_says_so_once(monkeypatch, recwarn):
    monkeypatch.setattr(cpu, "_missing", "nothing was built")
    for _ in range(3):
        deformable_attention(*draw())
    assert [str(warning.message) for warning in recwarn if "nothing was built" in str(warning.message)] == [
        "Deformable attention runs in plain PyTorch, many times slower than with the cpu kernel: nothing was built."
    ]


def python(code, **environment):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def test_a_copy_of_the_file_works_without_the_package_and_beside_it(tmp_path):
    shutil.copy(attention.__file__, tmp_path / "deformable_attention.py")
    code = f"""
import sys
sys.modules["unept_hf"] = None
sys.path.insert(0, {str(tmp_path)!r})
import torch, deformable_attention as copy
assert copy._KERNELS == {{}} and copy._choice.backend == "torch"
value, location = torch.ones(1, 4, 1, 1), torch.full((1, 1, 1, 1, 1, 2), 0.5)
print(copy.multi_scale_deformable_attention(value, [(2, 2)], location, torch.ones(1, 1, 1, 1, 1)).item())
"""
    assert python(code, UNEPT_ATTENTION_BACKEND="torch").strip() == "1.0"

    spec = importlib.util.spec_from_file_location("copy_of_deformable_attention", tmp_path / "deformable_attention.py")
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    torch.testing.assert_close(copy.deformable_attention(*draw()), deformable_attention(*draw()))


@needs_kernel
def test_training_follows_the_same_curve_with_and_without_the_kernel():
    config = UneptConfig.from_preset("unept-tiny", num_labels=4, use_boundary_heads=False)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (2, 8, 8), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
    images = labels[:, None] / 2 - 1 + 0.3 * torch.randn(2, 3, 64, 64, generator=generator)
    curves = []
    for backend in ("cpu", "torch"):
        torch.manual_seed(0)
        model = UneptForSemanticSegmentation(config).eval()
        for name, parameter in model.named_parameters():
            # The ring of the initialization lies on the corners of cells, where gradients are one-sided.
            if name.endswith("sampling_offsets.bias"):
                torch.nn.init.normal_(parameter, std=2)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        curve = []
        with attention_backend(backend):
            for _ in range(12):
                loss = model(images, labels=labels).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                curve.append(loss.item())
        curves.append(curve)
    assert curves[0][-1] < 0.9 * curves[0][0]
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


def resnet(config_class, **kwargs):
    sizes = {"embeddings_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
    return config_class(num_channels=3, **sizes, **kwargs)


def swin(first_stage):
    from transformers import SwinConfig

    sizes = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 4}
    return SwinConfig(**sizes, out_features=[f"stage{stage}" for stage in range(first_stage, 5)])


def tiny_deformable_detr():
    from transformers import DeformableDetrConfig, DeformableDetrModel, ResNetConfig

    config = DeformableDetrConfig(
        backbone_config=resnet(ResNetConfig, out_features=["stage2", "stage3", "stage4"]),
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=7,
    )
    return DeformableDetrModel(config), {}


def tiny_rt_detr(version=""):
    import transformers

    config_class = getattr(transformers, f"RTDetr{version}Config")
    config = config_class(
        backbone_config=resnet(transformers.RTDetrResNetConfig, out_features=["stage2", "stage3", "stage4"]),
        encoder_hidden_dim=32,
        encoder_in_channels=[16, 24, 32],
        encoder_ffn_dim=16,
        encoder_attention_heads=4,
        d_model=32,
        decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=16,
        decoder_layers=1,
        decoder_attention_heads=4,
        num_queries=7,
        num_denoising=0,
    )
    return getattr(transformers, f"RTDetr{version}Model")(config), {}


def tiny_rt_detr_v2():
    return tiny_rt_detr("V2")


def tiny_mask2former():
    from transformers import Mask2FormerConfig, Mask2FormerModel

    config = Mask2FormerConfig(
        backbone_config=swin(1),
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=4,
        num_queries=7,
    )
    return Mask2FormerModel(config), {}


def tiny_oneformer():
    from transformers import OneFormerConfig, OneFormerModel

    config = OneFormerConfig(
        backbone_config=swin(1),
        hidden_dim=32,
        mask_dim=32,
        conv_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        query_dec_layers=1,
        num_attention_heads=4,
        num_queries=7,
        is_training=False,
    )
    return OneFormerModel(config), {"task_inputs": torch.arange(77)[None]}


def tiny_grounding_dino():
    from transformers import BertConfig, GroundingDinoConfig, GroundingDinoModel

    bert = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, pad_token_id=0
    )
    config = GroundingDinoConfig(
        backbone_config=swin(2),
        text_config=bert,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=7,
        max_text_len=8,
    )
    return GroundingDinoModel(config), {"input_ids": torch.tensor([[1, 7, 8, 2]])}


@needs_kernel
@pytest.mark.parametrize(
    "make",
    [tiny_deformable_detr, tiny_rt_detr, tiny_rt_detr_v2, tiny_mask2former, tiny_oneformer, tiny_grounding_dino],
    ids=lambda make: make.__name__.removeprefix("tiny_"),
)
def test_models_of_transformers_take_the_kernel(make, monkeypatch):
    torch.manual_seed(0)
    model, inputs = make()
    model.eval()
    inputs["pixel_values"] = torch.randn(1, 3, 128, 160, generator=torch.Generator().manual_seed(0))
    calls = []
    forward = cpu.forward
    monkeypatch.setattr(cpu, "forward", lambda *arguments: calls.append(1) or forward(*arguments))

    with torch.no_grad():
        expected = model(**inputs, return_dict=False)
        assert not calls
        with accelerate_transformers():
            got = model(**inputs, return_dict=False)
        assert calls
        calls.clear()
        model(**inputs)
        assert not calls
    for tensor, reference in zip(tensors_of(got), tensors_of(expected), strict=True):
        torch.testing.assert_close(tensor, reference, atol=1e-4, rtol=1e-4)


def tensors_of(outputs):
    if isinstance(outputs, torch.Tensor):
        return [outputs] if outputs.is_floating_point() else []
    return [tensor for item in outputs or () for tensor in tensors_of(item)] if not isinstance(outputs, str) else []


# Those of setup.py.
INSTRUCTION_FLAGS = {
    "plain": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
}

SANITIZED = """
import ctypes, sys
from hypothesis import given, settings
from test_deformable_attention import cpu, draw, draws, plain_form
cpu._library = ctypes.CDLL(sys.argv[1])
cpu._library.unept_workspace_size.restype = ctypes.c_int64

@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(arguments=draws)
def check(arguments):
    for inputs in (arguments, (*arguments[:2], None, *plain_form(arguments)[2:])):
        cpu.backward(cpu.forward(*inputs), *inputs)

check()
for bad in (float("nan"), float("inf"), -1e30, 3e9):
    inputs = draw()
    inputs[3].fill_(bad)
    cpu.backward(cpu.forward(*inputs), *inputs)
"""


@needs_kernel
@pytest.mark.slow
@pytest.mark.parametrize("instruction_set", INSTRUCTION_FLAGS)
def test_kernel_under_sanitizers(instruction_set, tmp_path):
    if instruction_set not in cpu._LIBRARIES.get(torch.backends.cpu.get_cpu_capability(), ("plain",)):
        pytest.skip(f"this processor has no {instruction_set}")
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    flags = INSTRUCTION_FLAGS[instruction_set]
    source = Path(cpu.__file__).with_name("deformable_attention.cpp")
    library = tmp_path / "sanitized.so"
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-std=c++17", "-O1", "-g", "-w"]
    command = [compiler, *sanitizers, "-fPIC", "-shared", *flags, str(source), "-o", str(library)]
    built = subprocess.run(command, capture_output=True, text=True)
    # The sanitizer takes over __cxa_throw, so the C++ library must be there before Triton throws while it is imported.
    runtime = [
        subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    if built.returncode or not all(map(os.path.isabs, runtime)):
        pytest.skip(f"{compiler} has no AddressSanitizer: {built.stderr[-200:]}")
    result = subprocess.run(
        [sys.executable, "-c", SANITIZED, str(library)],
        cwd=ROOT,
        env={
            **os.environ,
            "LD_PRELOAD": " ".join(runtime),
            "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}",
        },
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]
