# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
The GPU kernel: the tests that every kernel must pass, and its own.

Triton must be told to interpret before it is imported, so most tests run in a second process: on the GPU where there
is one, else interpreted on the CPU.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_deformable_attention import (
    BACKEND,
    DEVICE,
    TOLERANCE,
    Layer,
    draw,
    layer_inputs,
    plain_form,
    relative_error,
    run,
)
from torch._subclasses.fake_tensor import FakeTensorMode

from unept_hf.kernels import triton as kernel
from unept_hf.model import deformable_attention as attention
from unept_hf.model.deformable_attention import (
    attention_backend,
    deformable_attention,
    multi_scale_deformable_attention,
    sampling_locations_and_weights,
)


ROOT = Path(__file__).parents[2]
# Of test_deformable_attention.py: what does not depend on which kernel it is.
COMMON = (
    "test_kernel_equals_the_oracle[",
    "test_equals_the_reference",
    "test_samples_that_are_nowhere_count_as_zero",
    "test_float32_locations_with_half_precision_values",
    "test_gradient_of_the_reference_points",
    "test_operators_keep_their_contract",
    "test_compiled_and_exported_graphs",
    "test_autocast_takes_the_value_and_leaves_the_locations",
    "test_zero_of_anything_gives_zeros",
)
# What is worth the interpreter's time in every run; CI takes the rest too.
SHORT = (
    "test_kernel_equals_the_oracle[",
    "test_float32_locations_with_half_precision_values",
    "test_gradient_of_the_reference_points",
    "test_samples_that_are_nowhere_count_as_zero[nan",
    "test_any_mix_of_dtypes",
    "test_logits_of_any_size",
    "test_deterministic_gradients_do_not_depend_on_the_order_of_the_queries",
    "test_zero_of_anything_gives_zeros",
    "test_hub_kernel_takes_the_place_of_the_layer_of_transformers",
)
needs_triton = pytest.mark.skipif(kernel._missing is not None, reason=str(kernel._missing))
in_second_process = pytest.mark.skipif(BACKEND != "triton", reason="runs in the process of test_second_process")
needs_gpu = pytest.mark.skipif(
    BACKEND != "triton" or DEVICE != "cuda", reason="there is no GPU" if BACKEND == "triton" else "see above"
)


@needs_triton
@pytest.mark.timeout(1200)
@pytest.mark.skipif(BACKEND == "triton", reason="this is the second process")
@pytest.mark.parametrize(
    "tests",
    [
        pytest.param(SHORT, marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU takes them all")),
        pytest.param((*COMMON, Path(__file__).stem), marks=[] if torch.cuda.is_available() else pytest.mark.slow),
    ],
    ids=["short", "whole"],
)
def test_second_process(tests):
    environment = {**os.environ, "UNEPT_TEST_BACKEND": "triton", "TOKENIZERS_PARALLELISM": "false"}
    environment["TRITON_INTERPRET"] = "0" if torch.cuda.is_available() else "1"
    files = [__file__, str(Path(__file__).with_name("test_deformable_attention.py"))]
    # Without what takes no kernel.
    chosen = f"({' or '.join(tests)}) and not float64 and not [torch] and not -torch]"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "-k", chosen, *files]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    print(result.stdout)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]


@in_second_process
@pytest.mark.parametrize("value", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("offsets", "logits"), [(torch.float32, torch.bfloat16), (torch.float16, torch.float32)])
def test_any_mix_of_dtypes(value, offsets, logits):
    arguments = draw(queries=5, heads=2)
    arguments = (arguments[0].to(value), *arguments[1:3], arguments[3].to(offsets), arguments[4].to(logits))
    with attention_backend("triton"):
        grad_output, got = run(deformable_attention, arguments)
    _, expected = run(deformable_attention, arguments, grad_output, torch.float64)
    for tensor, oracle in zip(got, expected):
        assert relative_error(tensor, oracle) <= TOLERANCE[torch.float16]


@in_second_process
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_locations_may_be_in_half_precision_too(dtype):
    value, spatial_shapes, locations, weights = plain_form(draw(queries=5, heads=2))
    arguments = (value, spatial_shapes, locations.to(dtype), weights.to(dtype))
    with attention_backend("triton"):
        grad_output, got = run(multi_scale_deformable_attention, arguments)
    _, expected = run(multi_scale_deformable_attention, arguments, grad_output, torch.float64)
    assert relative_error(got[0], expected[0]) <= TOLERANCE[torch.float32]
    assert relative_error(got[1], expected[1]) <= TOLERANCE[torch.float32]
    assert relative_error(got[2], expected[2]) <= TOLERANCE[dtype]


@in_second_process
@pytest.mark.parametrize("shift", [-300.0, 300.0])
def test_logits_of_any_size(shift):
    # Three points, so that one of the tile's does not exist.
    arguments = draw(queries=5, heads=2, points=3)
    arguments[4].add_(shift)
    with attention_backend("triton"):
        grad_output, got = run(deformable_attention, arguments)
    _, expected = run(deformable_attention, arguments, grad_output, torch.float64)
    for tensor, oracle in zip(got, expected):
        assert relative_error(tensor, oracle) <= TOLERANCE[torch.float32]


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def both_forms(arguments):
    value, spatial_shapes, reference_points, offsets, logits = arguments
    locations, weights = sampling_locations_and_weights(spatial_shapes, reference_points, offsets, logits)
    yield arguments
    yield value, spatial_shapes, None, locations, weights


@in_second_process
def test_deterministic_gradients_do_not_depend_on_the_order_of_the_queries(deterministic):
    queries = 40
    for value, spatial_shapes, reference_points, positions, scores in both_forms(draw(queries=queries, heads=2)):
        grad_output = torch.randn(2, queries, 16, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        grad_output[:, ::3] *= 1e-5
        gradients = []
        for order in (torch.arange(queries), torch.randperm(queries, generator=torch.Generator().manual_seed(2))):
            order = order.to(DEVICE)
            points = None if reference_points is None else reference_points[:, order]
            inputs = (value, spatial_shapes, points, positions[:, order], scores[:, order])
            gradients.append(kernel.backward(grad_output[:, order], *inputs)[0])
        assert torch.equal(*gradients)
        # The same sum in floating point would not pass.
        torch.use_deterministic_algorithms(False)
        free = kernel.backward(grad_output, value, spatial_shapes, reference_points, positions, scores)[0]
        torch.use_deterministic_algorithms(True)
        assert not torch.equal(free, gradients[0])
        assert relative_error(free, gradients[0]) < 1e-6


@in_second_process
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12, 1e12, 1e30])
def test_deterministic_gradients_of_any_size(deterministic, scale):
    for value, spatial_shapes, reference_points, positions, scores in both_forms(draw(queries=5, heads=2)):
        grad_output = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        inputs = (value, spatial_shapes, reference_points, positions, scores)
        expected = kernel.backward(grad_output, *inputs)[0].double() * scale
        got = kernel.backward(grad_output * scale, *inputs)[0].double()
        assert relative_error(got, expected) < 1e-6 if scale else not got.any()


@in_second_process
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["gradient", "scores"])
def test_deterministic_gradients_do_not_hide_what_is_not_finite(deterministic, bad, where):
    for value, spatial_shapes, reference_points, positions, scores in both_forms(draw(queries=5, heads=2)):
        grad_output = torch.ones(2, 5, 16, device=DEVICE)
        scores = scores.clone()
        (grad_output[0, 0] if where == "gradient" else scores[0, 0, 0, 0])[0] = bad
        gradients = kernel.backward(grad_output, value, spatial_shapes, reference_points, positions, scores)
        assert not gradients[0].isfinite().any()


@needs_gpu
@pytest.mark.parametrize("asked", [True, False])
def test_repeated_gradients_on_a_gpu(asked):
    arguments = draw(batch=2, spatial_shapes=[(30, 30)] * 3, queries=2700, heads=8, head_dim=32, points=16)
    torch.use_deterministic_algorithms(asked)
    try:
        results = [run(deformable_attention, arguments)[1] for _ in range(5)]
    finally:
        torch.use_deterministic_algorithms(False)
    for result in results[1:]:
        for index, (tensor, first) in enumerate(zip(result, results[0])):
            assert torch.equal(tensor, first) if asked or index != 1 else relative_error(tensor, first) < 1e-6


@needs_gpu
def test_paper_shapes_on_a_gpu():
    for head_dim, points, dtype in ((32, 16, torch.float32), (32, 16, torch.bfloat16), (64, 4, torch.float16)):
        arguments = draw(1, [(60, 60), (30, 30)], 4500, 8, head_dim, points, dtype)
        grad_output, got = run(deformable_attention, arguments)
        _, expected = run(deformable_attention, arguments, grad_output, torch.float64)
        for tensor, oracle in zip(got, expected):
            assert relative_error(tensor, oracle) <= TOLERANCE[dtype]


@needs_gpu
def test_offsets_beyond_32_bits_on_a_gpu():
    side, channels = 4200, 128
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("less than 12 GB of the GPU's memory are free")
    value = torch.zeros(1, side * side, 1, channels, dtype=torch.bfloat16, device=DEVICE)
    value[:, -1] = 1
    last = torch.full((1, 1, 1, 1, 1, 2), 1 - 0.5 / side, device=DEVICE)
    weight = torch.ones(1, 1, 1, 1, 1, device=DEVICE)
    output = multi_scale_deformable_attention(value, [(side, side)], last, weight)
    torch.testing.assert_close(output.float(), torch.ones(1, 1, channels, device=DEVICE), atol=2e-3, rtol=0)


@needs_gpu
def test_cuda_graphs():
    value, spatial_shapes, reference_points, offsets, logits = draw(dtype=torch.bfloat16)

    def step(value, offsets, logits):
        leaves = [tensor.detach().requires_grad_() for tensor in (value, offsets, logits)]
        output = deformable_attention(leaves[0], spatial_shapes, reference_points, *leaves[1:])
        return output, *torch.autograd.grad(output.float().square().sum(), leaves)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step(value, offsets, logits)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step(value, offsets, logits)
    for tensor in (value, offsets, logits):
        tensor.copy_(torch.randn_like(tensor))
    graph.replay()
    for tensor, expected in zip(recorded, step(value, offsets, logits)):
        torch.testing.assert_close(tensor, expected, rtol=1e-2, atol=1e-2)


@needs_gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_by_inductor(mode):
    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True, mode=mode)
    inputs = layer_inputs(2, 5, 6, 9)
    for _ in range(3):
        gradients = []
        for function in (layer, compiled):
            value = inputs[0].clone().requires_grad_()
            function(value, *inputs[1:]).square().sum().backward()
            gradients.append(value.grad.clone())
        torch.testing.assert_close(*gradients)


@needs_gpu
def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:

        class Projected(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.projection = torch.nn.Linear(8, 8)
                self.layer = Layer()

            def forward(self, value, *others):
                return self.layer(self.projection(value), *others)

        torch.manual_seed(0)
        module = Projected().to(DEVICE)
        inputs = layer_inputs(2, 5, 6, 9)
        module(*inputs).square().sum().backward()
        expected = module.projection.weight.grad.clone()
        module.zero_grad()
        torch.nn.parallel.DistributedDataParallel(module, device_ids=[0])(*inputs).square().sum().backward()
        torch.testing.assert_close(module.projection.weight.grad, expected)
    finally:
        torch.distributed.destroy_process_group()


@needs_gpu
def test_tensors_of_another_gpu_than_the_current():
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU only")
    arguments = [tensor.to("cuda:1") if isinstance(tensor, torch.Tensor) else tensor for tensor in draw()]
    torch.testing.assert_close(deformable_attention(*arguments).to("cuda:0"), deformable_attention(*draw()))


# CI compiles all configurations with benchmarks/triton_compilation.py.
@pytest.mark.slow
@needs_triton
@pytest.mark.timeout(1200)
@pytest.mark.skipif(BACKEND == "triton", reason="the interpreter does not compile")
def test_compiles_for_nvidia_and_amd_without_a_gpu(tmp_path):
    script = str(ROOT / "benchmarks" / "triton_compilation.py")
    command = [sys.executable, script, "--shapes", "odd", "--dtypes", "bfloat16", "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    table = next(tmp_path.glob("*.md")).read_text()
    assert [table.count(target) for target in ("sm_80", "sm_90", "gfx942")] == [6, 6, 6]


@needs_triton
@pytest.mark.skipif(BACKEND == "triton", reason="once is enough")
def test_tensors_on_cuda_take_the_kernel_by_themselves():
    with FakeTensorMode():
        value = torch.empty(2, 35, 3, 8, device="cuda", dtype=torch.float16)
        offsets = torch.empty(2, 11, 3, 1, 4, 2, device="cuda")
        reference_points = torch.empty(1, 11, 1, 2, device="cuda")
        arguments = (value, [(5, 7)], reference_points, offsets, offsets[..., 0])
        assert attention._choose_kernel(*arguments) is kernel
        output = deformable_attention(*arguments)
    assert (output.shape, output.dtype, output.device.type) == ((2, 11, 24), torch.float16, "cuda")


@needs_triton
def test_reasons_against_the_kernel():
    value, spatial_shapes, reference_points, offsets, logits = draw()
    elsewhere = value.to("meta")
    assert "the tensors are on meta" in kernel.why_not(elsewhere, spatial_shapes, reference_points, offsets, logits)
    if BACKEND != "triton":
        return
    double = (value.double(), spatial_shapes, reference_points, offsets, logits)
    assert kernel.why_not(*double) == "value is torch.float64, not float32, float16 or bfloat16"
    double = (value, spatial_shapes, reference_points.double(), offsets, logits)
    assert kernel.why_not(*double) == "reference_points are torch.float64, not float32"
    assert kernel.why_not(value, spatial_shapes, reference_points, offsets, logits) is None


@pytest.mark.skipif(BACKEND == "triton", reason="once is enough")
def test_without_triton_the_package_says_nothing_until_a_gpu_asks():
    code = """
import sys
sys.modules["triton"] = None
import torch, unept_hf
from unept_hf.model import deformable_attention as attention
from unept_hf.kernels import triton
inputs = torch.ones(1, 4, 1, 1), [(2, 2)], torch.full((1, 1, 1, 1, 1, 2), 0.5), torch.ones(1, 1, 1, 1, 1)
assert attention.multi_scale_deformable_attention(*inputs).item() == 1
assert "install the package triton" in triton.why_not(*inputs[:2], None, *inputs[2:])
assert attention._AUTOMATIC["cuda"] == "triton"
"""
    command = [sys.executable, "-W", "error::UserWarning:unept_hf", "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.fixture(scope="module")
def hub_kernel(tmp_path_factory):
    """A local folder as the Kernel Hub would have it, without what was not committed."""
    pytest.importorskip("kernels", reason="needs the package kernels")
    folder = tmp_path_factory.mktemp("hub") / "unept-deformable-attention"
    command = [
        sys.executable,
        str(ROOT / "kernel_hub" / "assemble.py"),
        str(folder),
        "--backends",
        "cuda",
        "rocm",
        "cpu",
    ]
    subprocess.run(command, check=True)
    return folder


@in_second_process
def test_hub_kernel_loads_from_a_local_folder(hub_kernel):
    from kernels import get_local_kernel

    hub = get_local_kernel(hub_kernel)
    assert Path(hub.__file__).is_relative_to(hub_kernel)
    layer = hub.layers.MultiScaleDeformableAttention()
    value, spatial_shapes, locations, weights = plain_form(draw(queries=5, heads=2))

    def through_layer(value, spatial_shapes, locations, weights):
        return layer(value, None, spatial_shapes, None, locations, weights, 64)

    arguments = (value, spatial_shapes, locations, weights)
    grad_output, got = run(through_layer, arguments)
    _, expected = run(multi_scale_deformable_attention, arguments, grad_output, torch.float64)
    for tensor, oracle in zip(got, expected):
        assert relative_error(tensor, oracle) <= TOLERANCE[torch.float32]

    compiled = torch.compile(through_layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), through_layer(*arguments))
    sizes = [size for shape in spatial_shapes for size in shape]
    leaves = [tensor.detach().requires_grad_() for tensor in (value, locations, weights)]
    torch.library.opcheck(hub.multi_scale_deformable_attention, (leaves[0], sizes, *leaves[1:]))
    with pytest.raises(RuntimeError, match=r"cannot run: value is torch\.float64"):
        through_layer(value.double(), *arguments[1:])


@in_second_process
def test_hub_kernel_takes_the_place_of_the_layer_of_transformers(hub_kernel):
    from kernels import LocalLayerRepository, Mode, kernelize, replace_kernel_forward_from_hub, use_kernel_mapping
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    class Theirs(MultiScaleDeformableAttention):
        """Marked as transformers marks its own where a version of kernels is installed that it knows."""

    replace_kernel_forward_from_hub(Theirs, "MultiScaleDeformableAttention")
    value, spatial_shapes, locations, weights = plain_form(draw(queries=5, heads=2))
    arguments = (value, torch.tensor(spatial_shapes), spatial_shapes, None, locations, weights, 64)
    expected = Theirs()(*arguments)
    # Kernels are looked up by a device's name. Of a CPU there is none, but "npu" looks at no device.
    device = "cuda" if DEVICE == "cuda" else "npu"
    repository = LocalLayerRepository(hub_kernel, layer_name="MultiScaleDeformableAttention")
    with use_kernel_mapping({"MultiScaleDeformableAttention": {device: repository}}, inherit_mapping=False):
        model = kernelize(torch.nn.Sequential(Theirs()), mode=Mode.TRAINING | Mode.TORCH_COMPILE, device=device)
    assert Path(sys.modules[model[0].forward.__func__.__module__].__file__).is_relative_to(hub_kernel)
    torch.testing.assert_close(model[0](*arguments), expected)


@pytest.mark.skipif(BACKEND == "triton", reason="once is enough")
def test_hub_configuration_is_one_that_kernels_can_read(hub_kernel):
    rust = pytest.importorskip("kernels._rust", reason="this version of kernels does not read build.toml")
    general = rust.Build.open(hub_kernel).general
    assert {str(backend).lower() for backend in general.backends} == {"cuda", "rocm"}


@needs_triton
@pytest.mark.skipif(BACKEND == "triton", reason="the interpreter does not compile")
def test_one_compilation_serves_all_image_sizes(monkeypatch):
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    backend = make_backend(GPUTarget("cuda", 90, 32))
    keys = set()

    class Recorder:
        def __init__(self, function):
            self.bind = create_function_from_signature(function.signature, function.params, backend)

        def __getitem__(self, grid):
            return lambda **arguments: keys.add(str(self.bind(**arguments)[1:]))

    monkeypatch.setattr(kernel, "forward_kernel", Recorder(kernel.forward_kernel))
    monkeypatch.setattr(kernel, "backward_kernel", Recorder(kernel.backward_kernel))
    # Triton's own rule compiles again for a 1 and for multiples of 16.
    for shape, queries in (([(1, 1), (2, 3)], 1), ([(16, 32), (8, 16)], 640), ([(60, 60), (30, 31)], 33)):
        for inputs in both_forms(draw(spatial_shapes=shape, queries=queries, head_dim=32)):
            kernel.forward(*inputs)
            kernel.backward(torch.ones(2, queries, 96), *inputs)
    # Forward and backward, with and without reference points.
    assert len(keys) == 4, keys
    assert all("'fp32', 'fp32', 'fp32', 'fp32'" in key for key in keys)
