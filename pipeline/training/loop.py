"""The training loop: seeded steps, checkpoints inside epochs, stop on NaN."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pipeline.data.base import ImageData, Part
from pipeline.errors import TrainingError
from pipeline.evaluation import Top1
from pipeline.layout import channels_last
from pipeline.run import Reporter
from pipeline.training.average import WeightAverage
from pipeline.training.checkpoint import Checkpoint, Progress
from pipeline.training.logs import TrainingLog
from pipeline.training.mixing import Mixing
from pipeline.training.optimizer import set_rates
from pipeline.training.processes import one_batch_norm, share_weights, total
from pipeline.training.recipe import Epoch, Recipe, Upkeep
from pipeline.training.session import Session
from pipeline.training.steps import Loss, Steps

# reading a loss waits for the device, so there it is done now and then
LOOK_EVERY = {"cpu": 1}
LOOK_SELDOM = 20  # steps
LOG_EVERY = 100  # steps


class Trainer:
    """Trains `trained` (all modules whose tensors change, as one) and keeps its state on disk.

    `trained` is checkpointed after every epoch, and inside epochs by `upkeep`, together with
    optimizer, history and whatever `state` adds; a killed run repeats at most what came after
    the last checkpoint, and repeats it exactly: a step's random numbers depend on seed, epoch and
    step alone.
    """

    def __init__(
        self,
        fabric: Fabric,
        data: ImageData,
        folder: Path,
        reporter: Reporter,
        recipe: Recipe,
        upkeep: Upkeep = Upkeep(),  # noqa: B008  a frozen value
    ) -> None:
        self.fabric, self.data, self.folder = fabric, data.on(fabric.device), folder
        self.reporter, self.recipe, self.upkeep = reporter, recipe, upkeep
        self.progress = Progress()
        self._checkpoint = Checkpoint(folder, recipe, reporter)
        self._saved = ""  # what the checkpoint on disk holds, in words
        self._log = TrainingLog("none", folder, recipe.label, step=0)
        self._last_loss = math.nan
        self._mixing = Mixing(recipe.regime, len(data.card.classes))

    @property
    def history(self) -> list[Epoch]:
        return self.progress.history

    @property
    def state(self) -> dict[str, float]:
        """Numbers of the method: they come back after a resume and are part of the history."""
        return self.progress.state

    @state.setter
    def state(self, numbers: dict[str, float]) -> None:
        self.progress.state = numbers

    @property
    def steps_per_epoch(self) -> int:
        size, batch = self.data.size("train"), self.recipe.batch
        # a last batch of one image is dropped: batch norm cannot be trained on it
        return max(1, size // batch + (size % batch > 1))

    def train(
        self,
        trained: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        *,
        evaluate: Callable[[], Top1],
        on_step: Callable[[], None] = lambda: None,
    ) -> list[Epoch]:
        """Run what is not done yet and return the whole history.

        `evaluate` gives each epoch's validation top-1; `on_step` follows every optimiser step.
        With an average of weights, `evaluate` sees it, and `trained` holds it at the end.
        """
        regime = self.recipe.regime
        with ExitStack() as stack:
            stack.enter_context(channels_last(trained, regime.channels_last))
            if self.fabric.world_size > 1:
                self._require_images_for_all()
                share_weights(trained)
                stack.enter_context(one_batch_norm(trained))
            steps = Steps(self.fabric, trained, optimizer, loss, self.recipe)
            average = WeightAverage(trained, regime.ema) if regime.ema > 0 else None
            session = Session(trained, optimizer, steps, average, on_step)
            self._resume(session)
            self._log = self._open_log()
            while len(self.history) < self.recipe.epochs:
                self._epoch(session, evaluate)
            self._log.close()
            if average is not None:
                average.swap()
        return self.history

    def _require_images_for_all(self) -> None:
        """TrainingError if some process would get no image of an epoch's last batch."""
        batch, devices = self.recipe.batch, self.fabric.world_size
        last = self.data.size("train") % batch
        fewest = last if last > 1 else batch  # a last one of one image is dropped
        if fewest < devices:
            raise TrainingError(
                f"{self.recipe.label}: batches of {fewest} images are too few for "
                f"{devices} devices",
                fix="choose another --train-batch or --train-limit, or fewer --devices",
            )

    def _epoch(self, session: Session, evaluate: Callable[[], Top1]) -> None:
        started = time.perf_counter() - self.progress.seconds
        session.trained.train()
        self._steps(session, started)
        self._require_finite(session.trained)
        with session.average.in_place() if session.average else nullcontext():
            top1 = evaluate().top1
        self._close_epoch(top1, time.perf_counter() - started, session)
        note = f"loss {self.history[-1].loss:.3f}, validation {top1:.2%}"
        self.reporter.progress(self.recipe.label, len(self.history), self.recipe.epochs, note)

    def _close_epoch(self, top1: float, seconds: float, session: Session) -> None:
        progress = self.progress
        mean_loss = progress.loss / max(progress.steps, 1)
        extra = dict(self.state)
        if session.steps.shrunk:
            extra["micro_batch"] = session.steps.micro_batch
        line = Epoch(len(self.history) + 1, mean_loss, top1, seconds, extra)
        self._log.write({f"epoch_{k}": v for k, v in line.to_json().items()}, self._steps_done)
        self.history.append(line)
        progress.steps, progress.loss, progress.seconds = 0, 0.0, 0.0
        self._save(session)

    def _steps(self, session: Session, started: float) -> None:
        """The steps of the epoch that are not done yet."""
        number, fabric, progress = len(self.history), self.fabric, self.progress
        part = Part(progress.steps, fabric.global_rank, fabric.world_size)
        batches = self.data.train_part(
            self.recipe.batch, seed=self.recipe.seed, epoch=number, part=part
        )
        unread: list[Tensor] = []
        saved = time.perf_counter()
        for images, labels in batches:
            unread.append(self._step(session, images, labels))
            progress.steps += 1
            if progress.steps % LOOK_EVERY.get(fabric.device.type, LOOK_SELDOM):
                continue
            self._read(unread)
            if progress.steps % LOG_EVERY == 0:
                rate = session.optimizer.param_groups[0]["lr"]
                self._log.write({"loss": self._last_loss, "lr": rate}, self._steps_done)
            if time.perf_counter() - saved >= 60 * self.upkeep.minutes:
                self._require_finite(session.trained)
                progress.seconds = time.perf_counter() - started
                self._save(session)
                saved = time.perf_counter()
        self._read(unread)

    def _step(self, session: Session, images: Tensor, labels: Tensor) -> Tensor:
        number, fabric, recipe = len(self.history), self.fabric, self.recipe
        done = self._steps_done
        share = done / (recipe.epochs * self.steps_per_epoch)
        set_rates(session.optimizer, share, recipe.regime.warmup)
        seeds = _seeds(recipe.seed, number, self.progress.steps, fabric.global_rank)
        torch.manual_seed(seeds[0])
        images, labels = self._mixing(images.to(fabric.device), labels.to(fabric.device))
        if recipe.regime.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        value = session.steps(images, labels, seed=seeds[1])
        if session.average is not None:
            session.average.update(done)
        session.on_step()
        return value

    def _read(self, unread: list[Tensor]) -> None:
        """Add the losses of the last steps up, over all processes; TrainingError on NaN."""
        if not unread:
            return
        values: list[float] = total(torch.stack(unread), self.fabric).tolist()
        for ago, value in zip(range(len(values), 0, -1), values, strict=True):
            if not math.isfinite(value):
                step = self.progress.steps - ago + 1
                raise self._diverged(f"the loss became {value} in step {step}")
        self.progress.loss, self._last_loss = self.progress.loss + sum(values), values[-1]
        unread.clear()

    def _require_finite(self, trained: nn.Module) -> None:
        """The last step before a checkpoint has no loss after it that would show its harm."""
        for name, value in trained.state_dict().items():
            if not bool(torch.isfinite(value).all()):
                raise self._diverged(f"{name} became NaN or infinite at the end")

    def _diverged(self, what: str) -> TrainingError:
        kept = f"the checkpoint {self._saved} is kept" if self._saved else "there is no checkpoint"
        return TrainingError(
            f"{self.recipe.label}: {what} of epoch {len(self.history) + 1}; {kept}",
            fix=self.recipe.fix,
        )

    @property
    def _steps_done(self) -> int:
        return len(self.history) * self.steps_per_epoch + self.progress.steps

    def _open_log(self) -> TrainingLog:
        kind = self.upkeep.logger if self.fabric.is_global_zero else "none"
        return TrainingLog(kind, self.folder, self.recipe.label, step=self._steps_done)

    def _save(self, session: Session) -> None:
        self._log.save()
        self.progress.micro_batch = session.steps.micro_batch
        if self.fabric.is_global_zero:
            self._checkpoint.write(self.progress, session.tensors(self.fabric))
        self._saved = str(self.progress)

    def _resume(self, session: Session) -> None:
        session.steps.tell = self.reporter.say
        found = self._checkpoint.read() if self.fabric.is_global_zero else None
        if self.fabric.world_size > 1:
            found = self.fabric.broadcast(found)  # the others' folders are elsewhere
        if found is None:
            return
        self.progress, tensors = found
        session.load(tensors, self.fabric)
        session.steps.micro_batch = self.progress.micro_batch
        self._saved = str(self.progress)
        self.reporter.say(f"{self.recipe.label}: resumed {self.progress}")


def _seeds(*numbers: int) -> tuple[int, int]:
    """Two seeds made from all the numbers: for mixing images, and for the network."""
    mixing, network = np.random.SeedSequence(numbers).generate_state(2, np.uint64).tolist()
    return mixing, network
