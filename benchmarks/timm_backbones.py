# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""
Which families of timm's models can be the backbone of a UN-EPT? The smallest member of each, with random weights, must
give finite logits and a finite loss, a gradient for each parameter that is not frozen, three training steps under
DistributedDataParallel, which raises for unused parameters, and logits for another image size.

A family is the models that share a source file of timm and the first letters of their names. All families take about
an hour on two cores; an interrupted run continues where it stopped.

    python benchmarks/timm_backbones.py
    python benchmarks/timm_backbones.py --models swin_tiny_patch4_window7_224 coat_lite_tiny --output results
"""

import argparse
import json
import logging
import math
import re
import signal
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import timm
import torch
from results_file import RESULTS, cpu_device, today, versions, write_results
from torch.nn.parallel import DistributedDataParallel

from unept_hf import UneptConfig, UneptForSemanticSegmentation


NUM_LABELS = 5


def families() -> dict[tuple[str, str], list[str]]:
    """Names of timm's models, by (source file, first letters)."""
    members = defaultdict(list)
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            if not name.startswith("test_"):
                members[module, re.match("[a-z]+", name)[0]].append(name)
    return members


def number_of_parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in timm.create_model(name).parameters())


def make_model(name: str, **model_args) -> UneptForSemanticSegmentation:
    with torch.device("meta"):
        levels = len(timm.create_model(name, features_only=True, **model_args).feature_info.info)
    indices = list(range(levels))[-3:]
    config = UneptConfig.from_preset(
        "unept-tiny",
        num_labels=NUM_LABELS,
        num_feature_levels=len(indices),
        backbone_config={
            "model_type": "timm_backbone",
            "backbone": name,
            "out_indices": indices,
            "model_args": model_args,
        },
    )
    torch.manual_seed(0)
    return UneptForSemanticSegmentation(config)


def check(model: UneptForSemanticSegmentation) -> None:
    """Raises AssertionError, or the error of the backbone, if the model fails one of the checks above."""
    unept = model.model
    divisor = unept.size_divisor
    side = math.ceil(64 / divisor) * divisor
    height, width = unept.fixed_image_size or (side, side)
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(2, 3, height, width, generator=generator)
    labels = torch.randint(0, NUM_LABELS, (2, height, width), generator=generator)

    outputs = model.train()(pixel_values, labels=labels)
    assert outputs.logits.shape == (2, NUM_LABELS, height // 8, width // 8), f"logits of {tuple(outputs.logits.shape)}"
    assert outputs.logits.isfinite().all(), "logits that are not finite"
    assert outputs.loss.isfinite(), f"a loss of {outputs.loss.item()}"
    outputs.loss.backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, f"{len(missing)} parameters without a gradient, such as {missing[0]}"
    model.zero_grad()

    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for _ in range(3):
        loss = parallel(pixel_values, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.isfinite(), f"a loss of {loss.item()} after three steps"

    if unept.fixed_image_size is None:
        with torch.no_grad():
            logits = model.eval()(torch.randn(1, 3, height + divisor, width + 2 * divisor)).logits
        expected = (1, NUM_LABELS, (height + divisor) // 8, (width + 2 * divisor) // 8)
        assert logits.shape == expected and logits.isfinite().all(), "logits of another image size"


def examine(name: str, seconds: int) -> dict:
    """The result for one model: `outcome`, and its details."""

    def stop(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    result = {}
    try:
        try:
            model = make_model(name)
        except ValueError as error:
            result["refusal"] = " ".join(str(error).split())
            multiple = re.search(r"in multiples of (\d+)", result["refusal"])
            if multiple is None:
                return {"outcome": "refused at construction", **result}
            side = int(multiple[1])
            model = make_model(name, img_size=math.ceil(timm.get_pretrained_cfg(name).input_size[-1] / side) * side)
        unept = model.model
        result |= {"size_divisor": unept.size_divisor, "fixed_image_size": unept.fixed_image_size}
        result["frozen"] = [key for key, p in unept.backbone.named_parameters() if not p.requires_grad]
        check(model)
        return {"outcome": "works" if unept.fixed_image_size is None else "works at one size", **result}
    except TimeoutError:
        return {"outcome": "out of time", **result}
    except Exception as error:
        first = " ".join(str(error).split())[:300]
        has_no_features = "features_only" in first or "feature_info" in first
        outcome = "has no feature maps in timm" if has_no_features and "refusal" not in result else "fails"
        return {"outcome": outcome, "error": f"{type(error).__name__}: {first}", **result}
    finally:
        signal.alarm(0)


def table(results: list[dict]) -> list[str]:
    lines = ["| outcome | families |", "| --- | --- |"]
    lines += [f"| {outcome} | {n} |" for outcome, n in Counter(r["outcome"] for r in results).most_common()]
    lines += [
        "",
        "| timm module | model | outcome | size divisor | frozen | remark |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        divisor = result.get("size_divisor", "")
        if result.get("fixed_image_size"):
            divisor = f"only {' x '.join(map(str, result['fixed_image_size']))}"
        remark = (result.get("error") or result.get("refusal") or "")[:160].replace("|", "/")
        frozen = len(result.get("frozen") or ()) or ""
        lines.append(
            f"| {result['module']} | {result['model']} | {result['outcome']} | {divisor} | {frozen} | {remark} |"
        )
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", help="only these models of timm")
    parser.add_argument("--max-parameters", type=float, default=200e6, help="leave out families that begin above")
    parser.add_argument("--timeout", type=int, default=180, help="seconds for one model")
    parser.add_argument("--progress", type=Path, default=Path(tempfile.gettempdir()) / "timm_backbones.jsonl")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)

    done = []
    if arguments.progress.exists():
        done = [json.loads(line) for line in arguments.progress.read_text().splitlines()]
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    work = families()
    if arguments.models:
        wanted = set(arguments.models)
        work = {key: found for key, names in work.items() if (found := [name for name in names if name in wanted])}
    results = []
    for (module, letters), names in sorted(work.items()):
        result = next(
            (r for r in done if (r["module"], r["family"]) == (module, letters) and r["model"] in names), None
        )
        if result is None:
            start = time.perf_counter()
            model = min(names, key=number_of_parameters)
            result = {"module": module, "family": letters, "model": model, "parameters": number_of_parameters(model)}
            if result["parameters"] > arguments.max_parameters:
                result["outcome"] = "left out, too large"
            else:
                result |= examine(model, arguments.timeout)
            print(f"{model}: {result['outcome']}, {time.perf_counter() - start:.0f} s", flush=True)
            with arguments.progress.open("a") as file:
                file.write(json.dumps(result) + "\n")
        results.append(result)
    torch.distributed.destroy_process_group()
    facts = {"date": today(), "device": cpu_device(), **versions("torch", "timm", "transformers")}
    write_results(
        arguments.output,
        "timm_backbones-cpu",
        "Families of timm as backbones",
        facts,
        table(results),
        families=results,
    )


if __name__ == "__main__":
    main()
