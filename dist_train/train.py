"""The training loop. Read this file first: it goes from top to bottom in the order of a run."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

from dist_train import build, ownership, runs
from dist_train.checkpoint import Checkpoints, TrainState
from dist_train.config import Config
from dist_train.errors import NotFinite, Preempted, UserError
from dist_train.evaluate import Evaluation, batch_shapes, evaluate, evaluate_with_tta
from dist_train.learner import Learner
from dist_train.metrics import Clock, Progress, Window
from dist_train.optim.losses import probabilities
from dist_train.preemption import Interrupted, Requests, watch
from dist_train.profiling import Profiler
from dist_train.runtime import Runtime, start_runtime
from dist_train.summary import describe, summarise
from dist_train.tracking import STOPPED, Trackers, json_lines
from dist_train.tracking.console import working
from dist_train.tracking.start import check_installed, start_trackers


def train(config: Config, *, dry_run: bool = False, clock: Clock | None = None) -> dict[str, Any]:
    """Trains as configured, or goes on where the run of that name stopped.

    Args:
        dry_run: two steps and a batch of evaluation, in a folder that is removed again; only the
            prepared data stays.
        clock: of what was done for this run before; None: nothing.

    Returns:
        What `<output>/<name>/summary.json` holds.

    Raises:
        UserError: the settings cannot be carried out here.
        Preempted: a signal or the stop file ended the run early.
    """
    clock = clock or Clock()
    with start_runtime(config.runtime) as runtime, ExitStack() as resources:
        if dry_run:
            scratch = resources.enter_context(runs.scratch_folder(runtime))
            config = runs.as_rehearsal(config, scratch)
        output = Path(config.output)
        name = config.name or runtime.on_main(lambda: runs.new_name(output, config.recipe))
        config, folder = replace(config, name=name), output / name
        finished = runtime.on_main(lambda: runs.open_folder(folder, config))
        if finished:
            runtime.say(f"{runs.result_line(folder, finished)} (finished before; nothing was done)")
            runtime.barrier()  # a rank that leaves while others still arrive can take them down
            return finished
        if runtime.is_main:
            resources.callback(ownership.release, folder)
        trainer = Trainer(config, folder, runtime, clock)
        if dry_run:
            trainer.evaluation_data = trainer.evaluation_data.first(config.data.eval_batch_size)
        return trainer.run()


class Trainer:
    """One run in its folder: everything it consists of, and where it is."""

    def __init__(self, config: Config, folder: Path, runtime: Runtime, clock: Clock) -> None:
        self.config, self.folder, self.runtime, self.clock = config, folder, runtime, clock
        runtime.on_main(lambda: check_installed(config.tracking))
        with clock.phase("prepare"):
            self.prepared = prepared = build.prepared_data(config.data, runtime)
            self.loader_kind = kind = build.choose_loader(config.data, prepared.manifest, runtime)
            self.batches = build.train_batches(config, prepared, kind, runtime)
            self.evaluation_data = build.evaluation_data(config.data, prepared, kind, runtime)
        self.steps_per_epoch = self.batches.order.steps_per_epoch
        self.eval_steps = config.train.eval_every * self.steps_per_epoch
        total_steps = max(1, round(config.train.epochs * self.steps_per_epoch))
        self.total_steps = min(total_steps, config.train.max_steps or total_steps)
        full_size = self.prepared.manifest.image_shape[0]
        self.sizes = build.image_sizes(config.data, full_size, self.total_steps)

        self.checkpoints = Checkpoints(folder / "checkpoints", keep=config.checkpoint.keep)
        state = runtime.on_main(self.checkpoints.load_latest)
        if state:
            runs.check_data(folder, state.data_checksum, self.prepared)
        self.learner = Learner(config, self.prepared, runtime, clock, sizes=self.sizes, state=state)
        # Operations an image are known ahead where all are learnt from, at one size.
        known = not config.data.resolutions and config.train.select == 1
        flops = self.learner.flops if known else None
        self.progress, self.carried = Progress(runtime, clock, flops), Window()
        self.profiler = Profiler(config.train.profile, folder / "profile", runtime, clock)
        self.step, self.best_accuracy = 0, 0.0
        self.skipped, self.resumed_from = set[int](), list[int]()
        self.result: Evaluation | None = None
        self.last_line = dict[str, float]()
        if state:
            self.restore(state)
            self.resumed_from = [*state.resumed_from, self.step]
            clock.resume(state.seconds)
        if runtime.compile_backend is not None or runtime.device.type == "cuda":
            with clock.phase("compile"), working("compiling", visible=runtime.is_main):
                self.warm_up()
        elif runtime.world_size > 2:
            # DDP arranges its messages anew after the first, and sums of three numbers and more
            # depend on it: that is over before the first step, also of a run that goes on.
            self.learner.warm_up(next(self.batches.steps(0, 1)), self.sizes[:1])
        # All of it could be built: from now on the folder is this run's.
        runtime.on_main(lambda: runs.keep_settings(folder, config, self.prepared.folder))
        self.trackers = Trackers([])
        if runtime.is_main:
            print(describe(self), flush=True)
            self.trackers = start_trackers(self)

    def warm_up(self) -> None:
        """Compiles, and has cuDNN choose its algorithms, for all shapes that are to come."""
        # The last batch of an epoch may be shorter: other shapes, other code.
        last = self.steps_per_epoch - 1
        for step in (0,) if self.config.data.drop_last else (0, last):
            batch = next(self.batches.steps(step, step + 1))
            self.learner.warm_up(batch, set(self.sizes[self.step :]))
        share = self.config.train.tta_share
        on_the_way = sorted(set(self.sizes[self.step : -1])) if self.eval_steps else []
        for some in batch_shapes(self.evaluation_data, self.runtime.world_size, share=share):
            for size in (*on_the_way, None):
                evaluate(self.learner.model, self.learner.augment, some, self.runtime, size=size)

    # The loop

    def run(self) -> dict[str, Any]:
        """Trains to the end, evaluates, and leaves the results in the run's directory."""
        every = self.config.checkpoint.every_minutes * 60
        # Until everything is saved: launchers send a signal again to those who take their time.
        with watch(self.folder / "STOP", self.runtime, every) as asked:
            try:
                with self.runtime.heartbeat.beating():
                    self.fit(asked)
                    summary = self.finish(*self.judge(asked))
            except BaseException as error:
                self.trackers.finish({})
                self.checkpoints.wait()
                if isinstance(error, Preempted):
                    self.runtime.barrier()  # a launcher ends all when the first one leaves
                raise
            self.trackers.finish(summary)
        self.runtime.say(runs.result_line(self.folder, summary))
        return summary

    def fit(self, asked: Requests) -> None:
        """Trains to the last step."""
        if self.config.train.non_finite == "skip" and not self.step:
            self.save(best=False)  # to have somewhere to go back to
        with self.clock.phase("train"):
            if self.carried.samples and self.is_logged(self.step):
                self.progress.restart(self.carried)  # the evaluation here had been interrupted
                self.after_step(asked)
                self.carried = Window()
            while self.step < self.total_steps:
                try:
                    self.train_on(asked)
                except NotFinite as error:
                    self.go_back(error)

    def train_on(self, asked: Requests) -> None:
        """Trains from the step reached to the last one."""
        self.progress.restart(self.carried)
        # A loss may be finite where its gradient is not: then the step after it looks guilty.
        guarded = self.config.train.non_finite == "skip"
        with self.profiler.running(self.step):
            for batch in self.clock.waiting(self.batches.steps(self.step, self.total_steps)):
                if self.step not in self.skipped:
                    norm = guarded or self.is_logged(self.step + 1)
                    result = self.learner.learn(
                        batch, self.step, self.timed, with_gradient_norm=norm
                    )
                    self.progress.add(self.step, result)
                self.step += 1
                self.runtime.alive()
                self.profiler.step(self.step)
                self.after_step(asked)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Around a part of a step."""
        forward = self.progress.forward() if part == "forward" else nullcontext()
        with forward, self.profiler.part(part):
            yield

    def after_step(self, asked: Requests) -> None:
        """A line of metrics, an evaluation, a checkpoint, a stop, where they are due.

        Raises:
            NotFinite: before anything is kept of a model that is spoilt.
            Preempted: the run was asked to stop, and is saved.
        """
        last = self.step == self.total_steps
        save_steps = self.config.checkpoint.every_steps or self.eval_steps
        decision = asked()
        stop = decision.stop and not last
        eval_due = last or is_due(self.step, self.eval_steps)
        log_due = self.is_logged(self.step)
        save_due = last or decision.save or is_due(self.step, save_steps)
        improved = False
        if eval_due or save_due or stop:
            self.learner.average_ranks(averages_too=True)
        if log_due or save_due or stop:
            window = self.progress.window()
            self.check_finite(window, weights_too=eval_due or save_due or stop)
        if log_due:
            self.last_line = {
                "step": self.step,
                "epoch": self.step / self.steps_per_epoch,
                "time": time.time(),
                **self.progress.line(window),
                **self.learner.learning_rates(),
            }
            if eval_due:
                improved = self.evaluate_step(asked, window)
            self.trackers.log(self.last_line)
            self.progress.restart()
            window = Window()
        if stop:
            self.stop(window)
        if save_due or improved:
            self.save(window, best=improved)
            asked.saved()

    def evaluate_step(self, asked: Requests, window: Window) -> bool:
        """The evaluation after a step goes into its line of metrics.

        Args:
            window: what was trained since the line before.

        Returns:
            Whether there was none as good.

        Raises:
            Preempted: the run was asked to stop meanwhile, and is saved.
        """
        # Before the end, at the size that is being trained: another one says little.
        size = None if self.step == self.total_steps else self.sizes[self.step - 1]
        try:
            self.result = result = self.evaluate(size, asked.interrupt)
        except Interrupted:
            self.stop(window)
        improved, split = result.accuracy > self.best_accuracy, self.evaluation_data.split
        self.best_accuracy = max(self.best_accuracy, result.accuracy)
        self.last_line[f"{split}/accuracy"] = result.accuracy
        self.last_line[f"{split}/best_accuracy"] = self.best_accuracy
        self.last_line[f"{split}/loss"] = result.loss
        self.learner.adapt(result)
        shares = probabilities(result.logits, self.config.train.loss)
        self.trackers.evaluated(self.step, shares.numpy(), result.labels.numpy())
        return improved

    def stop(self, window: Window) -> NoReturn:
        """Ends the process's part of the run.

        Args:
            window: what was trained since the last line of metrics.

        Raises:
            Preempted: the run is saved.
        """
        self.save(window, best=False)
        stopped = f"{self.folder} stopped after step {self.step}"
        self.trackers.warn(STOPPED, stopped)
        stop_file = self.folder / "STOP"
        remedy = f"remove {stop_file} and run again" if stop_file.exists() else "run again"
        raise Preempted(f"{stopped}; {remedy} to go on")

    def is_logged(self, step: int) -> bool:
        """Whether there is a line of metrics after so many steps: also with each evaluation."""
        every = (self.eval_steps, self.config.train.log_every)
        return step == self.total_steps or any(is_due(step, steps) for steps in every)

    def check_finite(self, window: Window, *, weights_too: bool) -> None:
        """Raises NotFinite, on all ranks, for the first step that spoilt the model."""
        if window.bad_step is not None:
            raise NotFinite(window.bad_step)
        if weights_too and not self.learner.is_finite():
            raise NotFinite(self.step - 1)

    def go_back(self, error: NotFinite) -> None:
        """To the last checkpoint, to train on without the batch that did the damage.

        Raises:
            UserError: that is not wanted, or happens too often.
        """
        self.trackers.warn("Loss is not finite", f"{self.folder}: {error}")
        settings = self.config.train
        if settings.non_finite == "stop" or len(self.skipped) >= settings.max_skips:
            raise UserError(
                f"{self.folder}: {error}"
                + (f", after {len(self.skipped)} skipped steps" if self.skipped else "")
                + "; lower --optim.learning_rate or set --optim.gradient_clip"
                + (", or try --train.non_finite skip" if settings.non_finite == "stop" else "")
            )
        state = self.runtime.on_main(self.checkpoints.load_latest)
        if state is None:
            raise UserError(f"{self.folder}: {error}, and there is no checkpoint to go back to")
        self.learner.load(state)
        self.restore(state)
        self.skipped.add(error.step)
        self.trackers.rewind(self.step)
        self.runtime.say(f"{error}: back to step {self.step}, to go on without that one")

    # Evaluating, saving, ending

    def judge(self, asked: Requests) -> tuple[Evaluation, Evaluation | None]:
        """The model at the end, plain and with test-time augmentation, if that is asked for.

        Raises:
            Preempted: the run was asked to stop meanwhile.
        """
        try:
            result = self.result or self.evaluate(after_batch=asked.interrupt)
            return result, self.evaluate_with_tta(result, asked.interrupt)
        except Interrupted:
            self.stop(Window())

    def evaluate(
        self, size: int | None = None, after_batch: Callable[[], None] = lambda: None
    ) -> Evaluation:
        """The model, or the average of its weights, on the images a run is judged by."""
        self.runtime.synchronize()  # what is still queued is training
        with self.clock.phase("evaluate"):
            self.learner.average_statistics()
            return evaluate(
                self.learner.judged_model(self.step),
                self.learner.augment,
                self.evaluation_data,
                self.runtime,
                size=size,
                after_batch=after_batch,
            )

    def evaluate_with_tta(
        self, plain: Evaluation, after_batch: Callable[[], None]
    ) -> Evaluation | None:
        """The same with several views of the images that the model is least sure of."""
        settings = self.config.train
        if settings.tta == "none":
            return None
        with self.clock.phase("evaluate"):
            return evaluate_with_tta(
                plain,
                self.learner.judged_model(self.step),
                self.learner.augment,
                self.evaluation_data,
                self.runtime,
                tta=settings.tta,
                share=settings.tta_share,
                after_batch=after_batch,
            )

    def save(self, window: Window | None = None, *, best: bool) -> None:
        """A checkpoint, written while training goes on."""
        with self.clock.phase("checkpoint"):
            learnt = self.learner.state()
            if not self.runtime.is_main:
                return
            path = self.checkpoints.save(
                TrainState(
                    **learnt,
                    step=self.step,
                    best_accuracy=self.best_accuracy,
                    seconds=self.clock.read(),
                    resumed_from=self.resumed_from,
                    window=asdict(window or Window()),
                    skipped=sorted(self.skipped),
                    data_checksum=self.prepared.manifest.train.sha256,
                ),
                best=best,
            )
            self.trackers.checkpointed(self.step, path, best=best)

    def restore(self, state: TrainState) -> None:
        """Everything but what the learner restores."""
        self.step, self.best_accuracy = state.step, state.best_accuracy
        self.skipped |= set(state.skipped)
        self.carried = Window(**state.window)
        self.last_line = json_lines.last(self.folder / "metrics.jsonl", self.step)

    def finish(self, result: Evaluation, with_tta: Evaluation | None) -> dict[str, Any]:
        """The end of a run: weights, answers and summary."""
        self.batches.loader.close()
        self.evaluation_data.loader.close()
        summary = summarise(self, result, with_tta)
        self.checkpoints.wait()
        if self.runtime.is_main:
            kept = self.learner.judged_model(self.step)
            answers = {"logits": result.logits.half(), "labels": result.labels}
            runs.finish(self.folder, kept.state_dict(), answers, summary)
        return summary


def is_due(step: int, every: int) -> bool:
    """Whether something done every so many steps (0: never) is done after this one."""
    return every > 0 and step % every == 0
