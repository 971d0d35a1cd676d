"""The training loop that every worker runs, for every stage, on one CPU or many GPUs.

    out = engine(batch)
    engine.backward(out.loss)
    engine.step(rate)

The rest serves two goals. The result does not depend on how a run was distributed or interrupted: samples come from
`MixtureSampler`, noise and dropout follow from their seeds, and losses are weighted so that micro-batches and workers
add up to the mean over the whole batch. And nothing is lost: state, metrics and images are written along the way.
"""

import gc
import math
import time
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kosmosg.checkpoint.sums import SUMS
from kosmosg.data.files.store_file import store_patience
from kosmosg.stages import Batch
from kosmosg_platform.console import quiet_libraries
from kosmosg_platform.stores.folder_sync import kept_in_step
from kosmosg_platform.stores.node_copy import send_folder
from kosmosg_platform.tracking.system_metrics import record_node
from kosmosg_platform.training import checkpoints
from kosmosg_platform.training.dataloader import micro_batches
from kosmosg_platform.training.ema import WeightEma
from kosmosg_platform.training.engine import Engine
from kosmosg_platform.training.export import export
from kosmosg_platform.training.heartbeat import beat
from kosmosg_platform.training.lr_schedule import batch_plan, learning_rate
from kosmosg_platform.training.metrics import Meter, Recorder, share_of_peak, write_sample_images
from kosmosg_platform.training.notices import notify
from kosmosg_platform.training.recipe import KEPT_APART, TrainRun
from kosmosg_platform.training.replacement import ReplacedSamples
from kosmosg_platform.training.sampler import mix
from kosmosg_platform.training.saving import CheckpointSaver, agree
from kosmosg_platform.training.skipped_data import SkippedData
from kosmosg_platform.training.stability import (
    Setback,
    SkippedUpdates,
    Stopped,
    StoreAway,
    is_finite,
    poison,
    roll_back,
)
from kosmosg_platform.training.stopping import Interruptions, tell_end
from kosmosg_platform.training.validation import validate

_FLUSH_SECONDS = 2.0  # the driver may wait longer, when the workers have freed their devices


def work(job: TrainRun) -> None:
    """Train on this worker until the job ends, stops, or cannot go on."""
    import ray.train
    import ray.train.torch

    quiet_libraries()
    torch.set_num_threads(job.experiment.scale.cpus_per_worker)
    device: torch.device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with store_patience(job.experiment.scale.store_retry_s):
        # The files of a run in a store are the same on all nodes when training begins, and before the last report.
        with kept_in_step(job.folder, KEPT_APART):
            dist.barrier()
            end = _train_and_export(job, device)
        ray.train.report(end)  # no worker exits before the export is written, or the driver told why not


def _train_and_export(job: TrainRun, device: torch.device) -> dict[str, int]:
    rolled_back = False
    while True:
        beat("start", 0)
        worker = Worker(job, rolled_back)
        with record_node(job.run, job.experiment.tracking.system_metrics_every):
            end = worker.train()
        worker.engine.release()  # the device has no room for both the trained stage and another one
        del worker
        gc.collect()
        if end is None:
            break
        if isinstance(end, StoreAway):
            told = "away", end.reason
        elif isinstance(end, Stopped):
            told = "stopped", f"stopped after step {end.step}, saved after step {end.saved}"
        elif (reason := roll_back(job, end)) is not None:
            told = "diverged", reason
        else:
            rolled_back = True
            continue
        # Not an error here, because Ray would start the workers again.
        if dist.get_rank() == 0:
            tell_end(job.folder, *told)
        return {}
    beat("export", job.experiment.train.steps)
    if dist.get_rank() == 0:
        stage, step = export(job, job.export)
        send_folder(job.export, last=SUMS)
        cast(nn.Module, stage).to(device)
        write_sample_images(job, job.recipe.sample_images(stage), step)
        # What is not sent by then is left to the driver.
        job.run.as_writer("worker").flush(_FLUSH_SECONDS)
        job.run.as_writer("worker").release()
    return {"step": job.experiment.train.steps}


class Worker:
    """One worker's part of a training run. torch.distributed must be up."""

    def __init__(self, job: TrainRun, rolled_back: bool = False) -> None:
        self.job = job
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.micro, self.passes = batch_plan(job.experiment.train, self.world, job.experiment.scale.workers)
        stage = job.build_stage()
        if job.experiment.engine.checkpoint_activations:
            stage.checkpoint_activations()
        self.share_of_peak = share_of_peak(job, stage) if self.rank == 0 else 0.0
        parameters = stage.trainable()
        sizes = [parameter.numel() for _, parameter in parameters]
        self.owned = checkpoints.assign(parameters, sizes, self.world)[self.rank]
        self.saver = CheckpointSaver(job)
        found = self.saver.newest()
        state = None if found is None else checkpoints.State(found)
        if state is not None:
            checkpoints.load_weights(parameters, state, "param")
        self.engine = Engine(
            cast(nn.Module, stage),
            parameters,
            job.experiment.train,
            job.experiment.engine,
            self.micro,
            self.passes,
            self.world,
            job.experiment.scale.use_gpu,
        )
        self.start, self.seconds = 0, 0.0
        if state is not None:
            self.start, self.seconds = state.progress.step, state.progress.seconds
            self.engine.load_moments(state, state.progress.optimizer_steps)
            self.engine.load_loss_scale_state(state.progress.loss_scale)
        decay = job.experiment.train.ema
        self.average = WeightEma(self.engine, self.owned, decay, state) if decay else None
        self.saved = self.start
        self.skipped_data: SkippedData = agree(SkippedData.read(job.folder) if self.rank == 0 else None)
        self.replaced = ReplacedSamples(job, self.start, self.engine.device)
        self.recorder = Recorder(job, self.start, rolled_back) if self.rank == 0 else None

    def train(self) -> Setback | Stopped | StoreAway | None:
        """Train from the current step to the last one, to a request to stop, to a store that stays away, or to a
        Setback, from which the workers must start again."""
        reached = self._train()
        end = self.saver.finish() or reached
        if self.recorder is not None:
            self.recorder.close()
        return end

    def _train(self) -> Setback | Stopped | None:
        train = self.job.experiment.train
        batches = micro_batches(self.job, self.start, self.micro, self.rank, self.world, self.skipped_data)
        skipped, due, applied = SkippedUpdates(train.max_skipped_updates), False, True
        interruptions = Interruptions(self.job.folder, self.rank)
        if train.sample_every and self.start == 0:
            self._sample_images(0)
        meter, begun = Meter(), time.monotonic()
        for step in range(self.start, train.steps):
            waiting = time.monotonic()
            beat("data" if step > self.start else "first step", step)
            loaded = [next(batches) for _ in range(self.passes)]
            meter.waited += time.monotonic() - waiting
            beat("step" if step > self.start else "first step", step)
            for one in loaded:
                self.replaced.note(step, one.replaced)
            batch = [one.batch for one in loaded]
            meter.tokens += sum(float(one.pop("tokens", 0.0)) for one in batch)
            weights = [float(one.pop("weight")) if "weight" in one else float(self.micro) for one in batch]
            asked = *interruptions.poll(), *self.saver.state
            total, stop, preempted, uploading, failed = self._sum(sum(weights), *asked)
            if failed:
                return None  # all workers see it at the same step; why is told at the end
            due |= bool(stop or preempted) and self.saved < step
            if due and applied and (stop or preempted):
                due = not self._save(step, self.seconds + time.monotonic() - begun)
            if stop:
                return Stopped(step, self.saved)
            if preempted and self.rank == 0:
                notify(self.job.folder, f"a node of this run is going away; saved after step {self.saved}")
            applied = self._step(step, batch, weights, total, meter)
            if applied and self.average is not None:
                self.average.update(step)
            done = step + 1
            validated = self._validate(done)
            if validated or done % train.log_every == 0 or done == train.steps:
                self._log(step, meter, validated)
                meter = Meter()
            setback = skipped.add(step, applied, self.engine.lowers_loss_scale)
            if setback is None and done == train.steps and skipped.in_row:
                setback = Setback(step, "loss or gradients of the last steps were not finite")
            due |= done % train.checkpoint_every == 0
            # A state whose last update failed may be one from which nothing can be learnt: the next good one is saved.
            # A checkpoint that is still being uploaded goes first.
            if setback is None and (done == train.steps or (due and applied and not uploading)):
                due = False
                if not self._save(done, self.seconds + time.monotonic() - begun):
                    setback = Setback(step, f"weights or optimizer states after step {step} were not finite")
            if setback is not None:
                return setback
            if train.sample_every and done % train.sample_every == 0 and done < train.steps:
                self._sample_images(done)
        return None

    def _sum(self, *mine: float) -> list[float]:
        """Sums over all workers, in the one reduction of a step that is our own."""
        sums = torch.tensor(mine, device=self.engine.device)
        dist.all_reduce(sums)
        found: list[float] = sums.tolist()
        return found

    def _step(self, step: int, batches: list[Batch], weights: list[float], total: float, meter: Meter) -> bool:
        """One update; False if it was skipped. `weights` are those of the batches, `total` that of all workers."""
        train = self.job.experiment.train
        rate = learning_rate(train, step)
        # DeepSpeed takes the plain mean over passes and workers; this turns it into the weighted mean.
        share = self.passes * self.world / max(total, 1e-9)
        step_seed = torch.tensor(mix(train.seed, step) >> 1)
        seen, applied = [], True
        for index, (batch, weight) in enumerate(zip(batches, weights, strict=True)):
            beat("step" if step > self.start else "first step", step)
            # What draws from torch's generator, such as dropout in a conditioner of a plug-in, at least repeats itself.
            torch.manual_seed(mix(train.seed, step, self.rank, index) >> 1)
            out = self.engine(batch | {"step_seed": step_seed})
            self.engine.backward(out.loss * (weight * share) * poison(out.loss))
            seen.append((out.metrics, weight))
            applied = self.engine.step(rate)
        for metrics, weight in seen:
            if applied or is_finite(metrics):
                meter.add(metrics, weight)
        meter.steps += 1
        meter.skipped += not applied
        return applied

    def _validate(self, done: int) -> dict[str, float]:
        """The metrics on held-out records, when it is time for them."""
        train = self.job.experiment.train
        if done % train.validate_every and done != train.steps:
            return {}
        beat("validation", done)
        return validate(self.job, self.engine, self.micro, self.rank, self.world)

    def _log(self, step: int, meter: Meter, validated: Mapping[str, float]) -> None:
        train = self.job.experiment.train
        metrics = meter.mean() | meter.of_workers(time.monotonic() - meter.begun, meter.steps * train.global_batch)
        rate = learning_rate(train, step)
        replaced = self.replaced.settle(step)
        if self.recorder is None:
            return
        metrics |= {
            "gradient_norm": self.engine.gradient_norm(),
            "learning_rate": rate,
            "data/replaced": float(replaced),
            **validated,
        }
        if self.share_of_peak:
            metrics["mfu"] = self.share_of_peak * metrics["samples_per_second"] / self.world
        if meter.skipped:
            metrics["skipped_updates"] = float(meter.skipped)
        if self.skipped_data.windows:
            metrics["rollbacks"] = float(len(self.skipped_data.windows))
        # Where every loss was lost, there is no mean of them, and a norm that is not finite is no number for a curve.
        self.recorder.write(step, {name: value for name, value in metrics.items() if math.isfinite(value)})

    def _save(self, step: int, seconds: float) -> bool:
        """Save a checkpoint after `step` steps; False, on every worker, if the state is not finite on one of them."""

        beat("checkpoint", step)
        self.replaced.settle(step - 1)
        engine = self.job.experiment.engine
        progress = checkpoints.TrainingProgress(
            key=self.job.key,
            step=step,
            optimizer_steps=self.engine.optimizer_steps(),
            loss_scale=self.engine.loss_scale_state(),
            base=self.job.base,
            seconds=seconds,
            written_by={"workers": self.world, "zero_stage": engine.zero_stage, "precision": engine.precision},
        )
        saved = self.saver.save(progress, self._state)
        if saved:
            self.saved = step
        return saved

    def _state(self) -> dict[str, Tensor]:
        """This worker's share of the tensors of a checkpoint."""
        tensors = dict(self.engine.full_state(self.owned))
        return tensors if self.average is None else tensors | self.average.state()

    def _sample_images(self, step: int) -> None:
        """Generate sample images. With sharded weights all workers must take part, but only the first keeps them."""
        beat("sample images", step)
        if self.rank == 0 or self.engine.parameters_are_sharded:
            stage: Any = self.engine.module
            stage.eval()
            images = self.job.recipe.sample_images(stage)
            stage.train()
            if self.rank == 0:
                write_sample_images(self.job, images, step)
        dist.barrier()
