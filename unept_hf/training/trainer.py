# Copyright 2026 The unept-hf authors. Licensed under the Apache License, Version 2.0.
"""The training of a model: its steps, evaluations, checkpoints and results."""

import functools
import json
import math
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import accelerate
import datasets
import numpy as np
import timm.layers
import torch
import transformers
from accelerate import Accelerator, DistributedType
from accelerate.logging import get_logger
from accelerate.utils import broadcast, broadcast_object_list, load, reduce, set_seed
from huggingface_hub import create_repo, upload_folder, whoami
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.augmentation import TrainingAugmentation
from ..data.statistics import class_weights, pixels_of_masks
from ..evaluation.evaluate import evaluate_model
from ..export.hub import save_for_hub
from ..export.model_card import (
    dataset_title,
    default_model_card,
    describe_backbone,
    is_private,
    picture_line,
    with_metadata,
)
from ..files import atomic_directory, remove_leftovers
from ..inference.options import PredictionOptions
from ..model.backbone_unept import plain_tensors
from ..model.image_processing_unept import UneptImageProcessor
from ..model.modeling_unept import UneptForSemanticSegmentation
from ..version import __version__
from ..visualization.figures import draw_crops, draw_samples, figure_to_image
from .arguments import FREE_OPTIONS, NOTED_OPTIONS, RunArguments, TrainingDataArguments, TrainingModelArguments, refuse
from .building import image_processor_options, load_data, load_model, make_optimizer, make_scheduler
from .checkpoints import checkpoint_to_resume, commit_checkpoint, latest_checkpoint, start_checkpoint
from .log import TrainingLog
from .order import AugmentedDataset, AugmentedStream, TrainingOrder, data_fingerprint, repeat_factors
from .processes import Interruption, ignore_signals, main_process_leads


__all__ = ["SegmentationTrainer"]

logger = get_logger(__name__)

_PREDICTIONS_IMAGE = "predictions.png"  # in the folder of a model, if it may be published


class SegmentationTrainer:
    """
    Model, optimizer, data and the state of one training run, on the processes of `make_accelerator`. A `ValueError`
    tells where options, data and checkpoint do not fit each other.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model_args: TrainingModelArguments,
        data_args: TrainingDataArguments,
        run_args: RunArguments,
    ):
        self.accelerator = accelerator
        self.model_args, self.data_args, self.run_args = model_args, data_args, run_args
        self.output_dir = Path(run_args.output_dir)
        pieces = accelerator.num_processes * run_args.gradient_accumulation_steps
        self.piece_size = run_args.train_batch_size // pieces  # crops that a process takes at once
        checkpoint = None
        with main_process_leads(accelerator):
            if accelerator.is_main_process:
                for name in ("model", "best_model"):
                    remove_leftovers(self.output_dir / name)
                checkpoint = checkpoint_to_resume(self.output_dir, run_args.resume_from_checkpoint)
                if run_args.push_to_hub:
                    whoami()  # better now than after the training
        checkpoint = broadcast_object_list([checkpoint])[0]

        with main_process_leads(accelerator):
            self.train_set, self.eval_set, self.class_list = load_data(data_args, run_args)
        set_seed(run_args.seed)
        with main_process_leads(accelerator):
            model = load_model(model_args, data_args.crop_size, self.class_list, checkpoint is not None)
        # Dropout draws other numbers in each process.
        set_seed(run_args.seed, device_specific=True)
        self.config = model.config
        self._set_class_weights()
        if self.config.decoder_self_attention == "batch" and self.piece_size != 2:
            logger.warning(
                f"With decoder_self_attention='batch', the {self.piece_size} crop(s) that a process takes at once "
                "attend to each other. The original takes 2: train_batch_size / (processes x "
                "gradient_accumulation_steps) should be 2."
            )
        self.processor = UneptImageProcessor(
            **image_processor_options(model, model_args.model_name_or_path),
            size={"shortest_edge": min(data_args.scale), "longest_edge": max(data_args.scale)},
            ignore_index=self.class_list.ignore_index,
        )
        if run_args.gradient_checkpointing:
            (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
        if accelerator.num_processes > 1 and not run_args.freeze_batch_norm:
            if accelerator.device.type == "cuda":
                # timm's own, which keeps the activations of its fused normalizations.
                model = timm.layers.convert_sync_batchnorm(model)
            else:
                logger.info("SyncBatchNorm needs GPUs: each process normalizes with its own part of the batch.")
        if run_args.torch_compile:
            model.compile(backend=run_args.torch_compile_backend)
        self.average: AveragedModel | None = None
        if run_args.ema_decay:
            average = get_ema_multi_avg_fn(run_args.ema_decay)
            self.average = AveragedModel(model.to(accelerator.device), multi_avg_fn=average, use_buffers=True)
            self.average.requires_grad_(False).eval()
        with main_process_leads(accelerator):
            optimizer = make_optimizer(model, run_args)
            scheduler = make_scheduler(optimizer, run_args)
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            # Otherwise it wants to see the data loader, and it clips by itself.
            plugin_config = accelerator.state.deepspeed_plugin.deepspeed_config
            plugin_config["train_micro_batch_size_per_gpu"] = self.piece_size
            plugin_config["gradient_clipping"] = run_args.max_grad_norm
        self.model, self.optimizer, self.scheduler = accelerator.prepare(model, optimizer, scheduler)
        # So that a checkpoint does not depend on the number of processes.
        accelerator.register_save_state_pre_hook(self._unwrap_saved)
        accelerator.register_load_state_pre_hook(self._unwrap_loaded)

        self.step = 0
        self.best_mean_iou = -1.0
        self.evaluations_without_gain = 0
        self.evaluated_step = -1
        self.metrics: dict[str, Any] = {}
        self.fingerprint: dict[str, str] | None = None
        if accelerator.is_main_process and isinstance(self.train_set, datasets.Dataset):
            self.fingerprint = data_fingerprint(self.train_set)
        if checkpoint is not None:
            self._load_checkpoint(checkpoint)
        self.log = TrainingLog(accelerator, self.output_dir, self.step)
        if run_args.report_to:
            simple = {
                key: value for key, value in self._options().items() if isinstance(value, (bool, int, float, str))
            }
            accelerator.init_trackers(run_args.run_name, config=simple)

    def _options(self) -> dict[str, Any]:
        return {**asdict(self.model_args), **asdict(self.data_args), **asdict(self.run_args)}

    # ---- checkpoints ----

    def _unwrap_saved(self, models: list, weights: list, output_dir: str) -> None:
        weights[:] = [self.accelerator.unwrap_model(model).state_dict() for model in models[: len(weights)]]

    def _unwrap_loaded(self, models: list, input_dir: str) -> None:
        models[:] = [self.accelerator.unwrap_model(model) for model in models]

    def save_checkpoint(self) -> None:
        """Writes everything that is needed to go on as if nothing had happened, once for each step."""
        accelerator = self.accelerator
        if (self.output_dir / f"checkpoint-{self.step}").is_dir():
            return
        started = start_checkpoint(self.output_dir, self.step) if accelerator.is_main_process else None
        folder = broadcast_object_list([started])[0]
        try:
            accelerator.save_state(folder)
            if accelerator.is_main_process and self.average is not None:
                save_file(self.average.module.state_dict(), folder / "average.safetensors")
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                commit_checkpoint(folder, self._checkpoint_content(), self.run_args.save_total_limit or None)
        except Exception:
            # Half a checkpoint must not take the space that is missing.
            if accelerator.is_main_process:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        accelerator.wait_for_everyone()
        logger.info(f"Saved {self.output_dir / f'checkpoint-{self.step}'}")

    def _checkpoint_content(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "best_mean_iou": self.best_mean_iou,
            "evaluations_without_gain": self.evaluations_without_gain,
            "evaluated_step": self.evaluated_step,
            "metrics": self.metrics,
            "num_processes": self.accelerator.num_processes,
            "num_examples": len(self.train_set) if isinstance(self.train_set, datasets.Dataset) else None,
            "data_fingerprint": self.fingerprint,
            "id2label": self.config.id2label,
            "image_mean": list(self.processor.image_mean),
            "image_std": list(self.processor.image_std),
            "options": self._options(),
            "versions": {
                "unept_hf": __version__,
                "torch": torch.__version__,
                "accelerate": accelerate.__version__,
            },
        }

    def _load_checkpoint(self, checkpoint: Path) -> None:
        content = json.loads((checkpoint / "checkpoint.json").read_text(encoding="utf-8"))
        with main_process_leads(self.accelerator):
            self._check_resumed(checkpoint, content)
        with plain_tensors(str(checkpoint)):
            self.accelerator.load_state(checkpoint)
        if content["num_processes"] == self.accelerator.num_processes:
            self._restore_random_states(checkpoint)
        self._set_learning_rates()
        self.accelerator.step = 0  # counts accumulated pieces, of which there may be another number now
        if self.average is not None:
            self.average.module.load_state_dict(load_file(checkpoint / "average.safetensors"))
            self.average.n_averaged.fill_(content["step"])
        for name in ("step", "best_mean_iou", "evaluated_step", "metrics"):
            setattr(self, name, content[name])
        self.evaluations_without_gain = content.get("evaluations_without_gain", 0)  # which older checkpoints lack
        # Older checkpoints do not name the normalization: it was that of ImageNet, the default of the image processor.
        for name in ("image_mean", "image_std"):
            setattr(self.processor, name, content.get(name, getattr(UneptImageProcessor, name)))
        # The model card says what the training started from, which a run that goes on need not be told again.
        for name in ("use_pretrained_backbone", "backbone_checkpoint", "model_name_or_path"):
            setattr(self.model_args, name, content["options"].get(name))
        logger.info(f"Resumed from {checkpoint}")

    def _restore_random_states(self, checkpoint: Path) -> None:
        """As Accelerate does, which passes over states that it cannot restore. This warns of them."""
        try:
            file = checkpoint / f"random_states_{self.accelerator.process_index}.pkl"
            with plain_tensors(str(file)):
                states = load(file)
            random.setstate(states["random_state"])
            np.random.set_state(states["numpy_random_seed"])
            torch.set_rng_state(states["torch_manual_seed"])
            if (device := self.accelerator.device.type) != "cpu":
                torch.get_device_module(device).set_rng_state_all(states[f"torch_{device}_manual_seed"])
        except Exception as error:  # a damaged file can bring about any
            logger.warning(
                f"Process {self.accelerator.process_index} cannot restore the random states of {checkpoint} "
                f"({type(error).__name__}: {error}): dropout draws other numbers than without the stop.",
                main_process_only=False,
            )

    def _set_learning_rates(self) -> None:
        """Sets the rates of this step in the present schedule, whose end may differ from that of the checkpoint."""
        scheduler = getattr(self.scheduler, "scheduler", None)
        if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
            return
        rates = [rate * factor(scheduler.last_epoch) for rate, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas)]
        for group, rate in zip(scheduler.optimizer.param_groups, rates):
            group["lr"] = rate
        scheduler._last_lr = rates

    def _check_resumed(self, checkpoint: Path, content: dict[str, Any]) -> None:
        """Refuses the checkpoint of another training, and warns of what may be intended."""
        # As JSON, like the options of the checkpoint. Younger options than it have no value to compare with.
        now = json.loads(json.dumps(self._checkpoint_content()))
        before = content["options"]
        changed = {
            name: f"{name} was {before[name]}, now {value}"
            for name, value in now["options"].items()
            if name in before and before[name] != value
        }
        strict = [text for name, text in changed.items() if name not in FREE_OPTIONS | NOTED_OPTIONS]
        if content["num_examples"] != now["num_examples"]:
            strict.append(f"the training set had {content['num_examples']} examples, now {now['num_examples']}")
        if content["id2label"] != now["id2label"]:
            strict.append("the classes differ")
        refuse(
            bool(strict)
            and f"{checkpoint} belongs to another training: {'; '.join(strict)}. Set these back, or start a new "
            "training in another output_dir."
        )
        for name in sorted(NOTED_OPTIONS & changed.keys()):
            logger.warning(f"Since {checkpoint}, {changed[name]}.")
        # A warning, because training stops at a broken file, and goes on when it is mended.
        known = content.get("data_fingerprint") or {}  # which older checkpoints do not have
        other = [part for part, value in (self.fingerprint or {}).items() if known.get(part, value) != value]
        if other:
            logger.warning(
                f"Since {checkpoint}, the data was replaced: its files have other {' and '.join(other)}. If this is "
                "not intended, bring the old data back, or start a new training in another output_dir."
            )
        if content["num_processes"] != now["num_processes"]:
            logger.warning(
                f"{checkpoint} is from {content['num_processes']} process(es), now there are {now['num_processes']}: "
                "the order of the data is the same, dropout is not."
            )

    # ---- steps ----

    def batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """The batches of this process from this step on, which Accelerate must not split once more."""
        accelerator, data_args, run_args = self.accelerator, self.data_args, self.run_args
        augmentation = TrainingAugmentation.from_config(
            self.config,
            self.processor,
            crop_size=data_args.crop_size,
            scale=tuple(data_args.scale),
            ratio_range=tuple(data_args.ratio_range),
            cat_max_ratio=data_args.cat_max_ratio,
            flip_probability=data_args.flip_probability,
            photometric_distortion=data_args.photometric_distortion,
            rotation_degrees=data_args.rotation_degrees,
            blur_probability=data_args.blur_probability,
            photometric_strength=data_args.photometric_strength,
        )
        processes = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
        num_workers = data_args.dataloader_num_workers
        crops: AugmentedStream | AugmentedDataset
        batches: dict[str, Any]
        if isinstance(self.train_set, datasets.IterableDataset):
            batches = {"batch_size": self.piece_size}
            crops = AugmentedStream(
                self.train_set,
                self.class_list,
                augmentation,
                seed=run_args.seed,
                buffer_size=data_args.shuffle_buffer_size,
                batch_size=self.piece_size,
                skip_batches=self.step * run_args.gradient_accumulation_steps,
                **processes,
            )
            num_workers = min(num_workers, crops.num_shards)
        else:
            crops = AugmentedDataset(self.train_set, self.class_list, augmentation, seed=run_args.seed)
            order = TrainingOrder(
                len(self.train_set),
                run_args.train_batch_size,
                run_args.max_steps,
                seed=run_args.seed,
                first_step=self.step,
                accumulation_steps=run_args.gradient_accumulation_steps,
                repeat_factors=self._repeat_factors(),
                **processes,
            )
            batches = {"batch_sampler": order}
        loader = DataLoader(
            crops,
            num_workers=num_workers,
            pin_memory=accelerator.device.type == "cuda",
            worker_init_fn=ignore_signals,
            # Its own, because a loader draws a number, and dropout would not see the same ones after a resume.
            generator=torch.Generator(),
            **batches,
        )
        return iter(loader)

    @functools.cached_property
    def _pixels_of_masks(self) -> np.ndarray:
        """Pixels of each class in each mask of the training set, which the first process counts."""
        pixels = None
        with main_process_leads(self.accelerator):
            if self.accelerator.is_main_process:
                pixels = pixels_of_masks(self.train_set, self.class_list, progress=not self.run_args.disable_tqdm)
        return broadcast_object_list([pixels])[0]

    def _set_class_weights(self) -> None:
        if (rule := self.data_args.class_weighting) == "none":
            return
        refuse(
            "class_weights" in (self.model_args.config_overrides or {})
            and "class_weighting and the class_weights of config_overrides exclude each other: drop one."
        )
        self.config.class_weights = class_weights(self._pixels_of_masks, rule)
        weights = zip(self.class_list.id2label.values(), self.config.class_weights)
        logger.info(f"Class weights: {', '.join(f'{name} {weight:.2f}' for name, weight in weights)}.")

    def _repeat_factors(self) -> torch.Tensor | None:
        """How often the examples come, from their masks alone: after a resume the same as before."""
        if not self.data_args.class_balanced_sampling:
            return None
        factors = repeat_factors(self._pixels_of_masks > 0, self.data_args.class_balanced_sampling)
        logger.info(
            f"Class-balanced sampling: {int((factors > 1).sum())} of {len(factors)} images come more often, "
            f"at most {factors.max():.1f} times."
        )
        return factors

    def draw_crops(self) -> None:
        """Writes a picture of the crops of the next step with their masks, as the model gets them."""
        batch = next(self.batches())
        mean, std = (
            torch.tensor(values)[:, None, None] for values in (self.processor.image_mean, self.processor.image_std)
        )
        images = ((batch["pixel_values"].cpu() * std + mean).clamp(0, 1) * 255).round().byte().movedim(1, -1)
        file = self.output_dir / "first_crops.png"
        if self.accelerator.is_main_process:
            id2label, palette = self.class_list.id2label, self.class_list.palette
            draw_crops(images.numpy(), batch["labels"].cpu().numpy(), id2label, palette).savefig(file)
        logger.info(f"{len(images)} crops of the first step are in {file}. Without --dry_run, training starts.")

    def set_to_training(self) -> None:
        self.model.train()
        if self.run_args.freeze_batch_norm:
            for module in self.model.modules():
                if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def train_step(self, batches: Iterator[dict[str, torch.Tensor]]) -> tuple[float, float]:
        """
        One step of the optimizer. Returns the loss and the norm of the gradient; `losses` has the loss and its terms.

        Raises:
            FloatingPointError: when one of them is not finite. The weights are still those of the step before.
        """
        accelerator, run_args = self.accelerator, self.run_args
        totals: dict[str, torch.Tensor] = {}
        for _ in range(run_args.gradient_accumulation_steps):
            batch = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in next(batches).items()}
            with accelerator.accumulate(self.model):
                outputs = self.model(**batch)
                accelerator.backward(outputs.loss)
                terms = {"loss": outputs.loss.detach()}
                terms |= {f"loss/{name}": term.detach() for name, term in outputs.loss_dict.items()}
                for name, term in terms.items():
                    term = term.float() / run_args.gradient_accumulation_steps
                    totals[name] = totals[name] + term if name in totals else term
        means = reduce(torch.stack(list(totals.values())), reduction="mean").tolist()
        self.losses = dict(zip(totals, means))
        loss = self.losses["loss"]
        norm = accelerator.clip_grad_norm_(self.model.parameters(), run_args.max_grad_norm or math.inf)
        norm = float("nan") if norm is None else float(norm)
        # A scaler skips such a step by itself, and DeepSpeed does not say.
        is_measured = accelerator.scaler is None and accelerator.distributed_type != DistributedType.DEEPSPEED
        if not math.isfinite(loss) or (is_measured and not math.isfinite(norm)):
            newest = latest_checkpoint(self.output_dir)
            raise FloatingPointError(
                f"At step {self.step + 1} the loss is {loss} and the norm of the gradient {norm}. Training stops; "
                f"{f'the last checkpoint is {newest}' if newest else 'there is no checkpoint yet'}. Try a lower "
                "learning_rate, warmup_steps, a max_grad_norm, or bf16 in place of fp16."
            )
        self.learning_rate = self.scheduler.get_last_lr()[0]
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.average is not None:
            self.average.update_parameters(accelerator.unwrap_model(self.model))
        return loss, norm

    def _is_due(self, interval: int) -> bool:
        return self.step == self.run_args.max_steps or (interval > 0 and self.step % interval == 0)

    def _stops_early(self) -> bool:
        patience = self.run_args.early_stopping_patience
        return patience is not None and self.evaluations_without_gain >= patience

    def train(self) -> bool:
        """
        Trains to the end, until evaluations bring no gain, or until a signal comes. Returns `False` for a signal.
        """
        accelerator, run_args = self.accelerator, self.run_args
        batches = self.batches()
        progress = tqdm(
            total=run_args.max_steps,
            initial=self.step,
            desc="Training",
            disable=True if run_args.disable_tqdm or not accelerator.is_local_main_process else None,
        )
        with Interruption() as interruption, progress:
            if self.step and self._is_due(run_args.eval_steps):
                self.evaluate()
            losses, started = [], time.perf_counter()
            self.set_to_training()
            while self.step < run_args.max_steps and not self._stops_early():
                loss, norm = self.train_step(batches)
                losses.append(self.losses)
                progress.update()
                progress.set_postfix(loss=f"{loss:.3f}")
                if self.step % run_args.logging_steps == 0 or self.step == run_args.max_steps:
                    seconds = time.perf_counter() - started
                    self._log_losses(losses, norm, len(losses) * run_args.train_batch_size / seconds)
                    losses, started = [], time.perf_counter()
                if interruption.received:
                    accelerator.set_trigger()
                if accelerator.check_trigger():  # in any process
                    self.save_checkpoint()
                    logger.info(
                        f"Stopped by {interruption.received or 'a signal'} after step {self.step}. Go on with "
                        "--resume_from_checkpoint latest."
                    )
                    return False
                paused = time.perf_counter()
                if self._is_due(run_args.eval_steps):
                    try:
                        self.evaluate()
                    except Exception:
                        # A broken image in the evaluation set must not cost what was learned. Several processes could
                        # not agree on saving here.
                        if accelerator.num_processes == 1:
                            self.save_checkpoint()
                        raise
                    self.set_to_training()
                if self._is_due(run_args.save_steps) or self._stops_early():
                    self.save_checkpoint()
                started += time.perf_counter() - paused
        if self._stops_early():
            logger.info(
                f"Training ends after step {self.step}: {self.evaluations_without_gain} evaluations brought no mean "
                f"IoU above {self.best_mean_iou:.4f}."
            )
        return True

    def _log_losses(self, losses: list[dict[str, float]], norm: float, samples_per_second: float) -> None:
        values = {
            **{name: sum(one[name] for one in losses) / len(losses) for name in losses[0]},
            "gradient_norm": norm,
            "learning_rate": self.learning_rate,
            "samples_per_second": samples_per_second,
        }
        memory = ""
        if self.accelerator.device.type == "cuda":
            values["peak_memory_gb"] = torch.cuda.max_memory_allocated(self.accelerator.device) / 1e9
            memory = f", {values['peak_memory_gb']:.1f} GB"
        self.log.write(self.step, values)
        logger.info(
            f"step {self.step}: loss {values['loss']:.4f}, learning rate {values['learning_rate']:.2e}, "
            f"{samples_per_second:.1f} samples/s{memory}"
        )

    # ---- evaluation and results ----

    def _evaluated_model(self) -> UneptForSemanticSegmentation:
        """The averaged weights if there are any, else those of the last step."""
        model = self.average.module if self.average is not None else self.accelerator.unwrap_model(self.model)
        return cast(UneptForSemanticSegmentation, model)

    def evaluate(self) -> None:
        """Measures, draws and logs, once for each step, and keeps the best model."""
        if self.eval_set is None or self.evaluated_step == self.step:
            return
        accelerator, run_args = self.accelerator, self.run_args
        model = self._evaluated_model().eval()
        if accelerator.distributed_type in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
            # Running statistics of batch norms differ until the next step.
            for buffer in model.buffers():
                buffer.copy_(broadcast(buffer))
        # Images of all sizes would be compiled again and again; and training must not depend on evaluations.
        with torch.compiler.set_stance("force_eager"), torch.random.fork_rng(devices=[]):
            metrics = evaluate_model(
                model,
                self.processor,
                self.eval_set,
                self.class_list,
                PredictionOptions(
                    mode=run_args.evaluation_mode,
                    crop_size=[self.data_args.crop_size],
                    stride=[self.data_args.crop_size // 3],
                ),
                accelerator=accelerator,
                boundary_f1=False,
                progress=not run_args.disable_tqdm,
                max_images=run_args.max_eval_images,
                num_samples=run_args.num_prediction_images,
            )
        if samples := metrics.get("samples"):  # of the main process
            self._picture(self.step).parent.mkdir(exist_ok=True)
            classes = self.class_list
            figure = draw_samples(samples, classes.palette, classes.id2label, classes.ignore_index)
            figure.savefig(self._picture(self.step))
            self.log.show(self.step, "predictions", figure_to_image(figure))
        self.metrics = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
        self.evaluated_step = self.step
        values = {f"eval/{name}": value for name, value in self.metrics.items()}
        values |= {f"eval/iou/{label}": one["iou"] for label, one in metrics["per_category"].items()}
        self.log.write(self.step, values)
        self.log.summarize()
        logger.info(
            f"step {self.step}: mean IoU {self.metrics['mean_iou']:.4f}, pixel accuracy "
            f"{self.metrics['overall_accuracy']:.4f}, loss {self.metrics['loss']:.4f} on "
            f"{self.metrics['num_images']} images, in {self.metrics['seconds']:.1f} s"
        )
        if self.metrics["mean_iou"] > self.best_mean_iou:
            self.best_mean_iou, self.evaluations_without_gain = self.metrics["mean_iou"], 0
            self._export_model(self.output_dir / "best_model")
        else:
            self.evaluations_without_gain += 1

    def _picture(self, step: int) -> Path:
        return self.output_dir / "predictions" / f"step_{step}.png"

    def _export_model(self, directory: Path) -> None:
        """Writes a folder that loads anywhere, with a model card."""
        # Gathers the weights that FSDP and DeepSpeed have spread.
        state_dict = None if self.average is not None else self.accelerator.get_state_dict(self.model)
        if self.accelerator.is_main_process:
            picture = self._picture(self.evaluated_step)  # shows images of the data set
            has_picture = self.run_args.hub_prediction_pictures and picture.is_file()
            save_for_hub(
                self._evaluated_model(),
                self.processor,
                directory,
                overwrite=True,
                state_dict=state_dict,
                model_card=self._model_card(_PREDICTIONS_IMAGE if has_picture else None),
            )
            if has_picture:
                shutil.copyfile(picture, directory / _PREDICTIONS_IMAGE)
        self.accelerator.wait_for_everyone()

    def _model_card(self, picture: str | None) -> str:
        """The model card with what is known about this training."""
        model_args, data_args, run_args = self.model_args, self.data_args, self.run_args
        if model_args.model_name_or_path:
            trained = model_args.model_name_or_path
            started_from = "a trained model" if is_private(trained) else f"the trained model `{trained}`"
        elif model_args.backbone_checkpoint:
            started_from = "a checkpoint file"
        elif model_args.use_pretrained_backbone:
            started_from = "timm's pretrained weights"
        else:
            started_from = "random weights"
        # Options of the upload are not part of the training.
        options = {
            name: value
            for name, value in self._options().items()
            if not name.startswith("hub_") and name not in ("push_to_hub", "license")
        }
        evaluation = None
        if self.metrics:
            held_out = f"a held-out share of {data_args.train_split}"
            evaluation = {
                **self.metrics,
                "dataset": data_args.dataset_name,
                "split": held_out if data_args.eval_fraction else data_args.eval_split,
                "settings": {"mode": run_args.evaluation_mode},
            }
        return default_model_card(
            self._repository_name(),
            len(self.class_list),
            license=run_args.license,
            backbone=describe_backbone(self.config, started_from),
            dataset=data_args.dataset_name,
            training=f"Trained for {self.step} steps of {run_args.train_batch_size} crops ({data_args.crop_size} x "
            f"{data_args.crop_size}) on the split `{data_args.train_split}` of "
            f"{dataset_title(data_args.dataset_name)}, with seed {run_args.seed}, by the trainer of unept-hf "
            f"{__version__} (torch {torch.__version__}, transformers {transformers.__version__}).",
            training_options=options,
            evaluation=evaluation,
            picture=picture,
        )

    def _repository_name(self) -> str:
        return self.run_args.hub_model_id or self.output_dir.resolve().name

    def finish(self) -> None:
        """Writes the final model, and uploads it if the options ask for it."""
        final = self.output_dir / "model"
        has_best = self.best_mean_iou >= 0
        if self.run_args.load_best_model_at_end and not has_best:
            logger.warning("No evaluation gave a mean IoU, so the final model is the last one, not the best.")
        if self.run_args.load_best_model_at_end and has_best:
            if self.accelerator.is_main_process:
                with atomic_directory(final, overwrite=True) as folder:
                    shutil.copytree(self.output_dir / "best_model", folder, dirs_exist_ok=True)
                    # This run decides what may be published, though an earlier one may have written the model.
                    card = folder / "README.md"
                    text = with_metadata(card.read_text(encoding="utf-8"), license=self.run_args.license)
                    if not self.run_args.hub_prediction_pictures:
                        (folder / _PREDICTIONS_IMAGE).unlink(missing_ok=True)
                        text = text.replace(picture_line(_PREDICTIONS_IMAGE), "")
                    card.write_text(text, encoding="utf-8")
        else:
            self._export_model(final)
        self.log.summarize()
        logger.info(f"The model is in {final}")
        if self.run_args.push_to_hub and self.accelerator.is_main_process:
            repository = create_repo(
                self._repository_name(), private=self.run_args.hub_private_repo, exist_ok=True
            ).repo_id
            upload_folder(repo_id=repository, folder_path=final, commit_message=f"Step {self.step}")
            logger.info(f"Uploaded to https://huggingface.co/{repository}")
