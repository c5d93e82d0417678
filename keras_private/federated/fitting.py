"""The rounds of a `fit`."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Callable, Optional

import numpy as np

from .._backends import keras_state
from ..dp.engine import coordinates_of
from ..errors import ConfigurationError, UnsupportedModelError
from . import local_work, workers
from .aggregators.base import Aggregator, Round
from .aggregators.mean import Mean
from .backups import Backup
from .checkpoints import Checkpoints
from .checks import is_whole
from .clients import Clients
from .engine import Engine, Setting
from .exposure import FIT, Exposure
from .local_privacy import most_attempts
from .models import build, copy_of
from .progress import callback_list
from .sampling import FIXED, POISSON, sampler_of
from .server import ServerStep, fresh_optimizer

if TYPE_CHECKING:
    from .model import FederatedModel


@dataclasses.dataclass(frozen=True)
class FitArguments:
    """Arguments of `FederatedModel.fit`, as documented there."""

    epochs: int
    clients_per_round: Optional[int]
    local_epochs: int
    batch_size: int
    validation_data: Any
    validation_freq: int
    callbacks: Any
    verbose: Any
    initial_epoch: int
    shuffle: bool
    sampling: Optional[str]
    workers: Any
    seed: Optional[int]
    checkpoints: Any

    def __post_init__(self) -> None:
        for name, least in (("epochs", 0), ("initial_epoch", 0), ("local_epochs", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if not is_whole(value) or value < least:
                raise ConfigurationError(
                    f"{name} is {value!r}.", expected=f"a whole number, at least {least}", remedy="Correct it."
                )
        if not isinstance(self.validation_freq, int) or self.validation_freq < 1:
            raise ConfigurationError(
                f"validation_freq is {self.validation_freq!r}.", expected="a whole number, at least 1", remedy="Give 1."
            )


class Fitting:
    """Fits of one compiled FederatedModel."""

    def __init__(self, owner: FederatedModel) -> None:
        self._owner = owner
        self._works: dict[Any, local_work.LocalWork] = {}
        self._engines: dict[Any, Engine] = {}

    def fit(self, clients: Clients, arguments: FitArguments) -> Any:
        owner, aggregator = self._owner, self._owner.aggregator
        if aggregator.private and arguments.seed is not None:
            raise ConfigurationError(
                "A seed was given, and the aggregator is private.",
                expected="draws that nobody can repeat",
                remedy="Leave out seed.",
            )
        generator = None if arguments.seed is None else np.random.default_rng(arguments.seed)
        kind = arguments.sampling or (POISSON if aggregator.private else FIXED)
        sampler = sampler_of(kind, clients.names, arguments.clients_per_round, generator)
        build(owner.model, clients.element_spec)
        self._check_state(aggregator)
        local = owner.local_privacy
        if local is not None and owner.algorithm is not None:
            local.check(owner.model, owner.algorithm, arguments.batch_size)
        backup = Backup(arguments.callbacks, arguments.checkpoints)
        if backup.folder is not None:
            arguments = dataclasses.replace(arguments, callbacks=backup.callbacks, checkpoints=backup.folder)
        follow = callback_list(arguments.callbacks, owner, arguments.verbose, arguments.epochs)
        owner.stop_training = False
        session = secrets.token_hex(16)
        meter = owner.privacy_meter if aggregator.private else None
        try:
            work = self._work(clients, arguments.shuffle)
            aggregator.prepare(work.dimension, sampler.cohort)
            engine = self._engine(work, clients, arguments.shuffle)
            step = ServerStep(owner.model, work, owner.server_optimizer, owner.model.optimizer)
            saved, first = self._resumed(arguments)
            with workers.use(arguments.workers) as hosts:
                exposure = Exposure.of(FIT, clients, hosts, aggregator)
                exposure.local = local
                owner.exposures.append(exposure)
                if local is not None:
                    coordinates = coordinates_of(owner.model.trainable_variables)
                    owner.local_meter.begin(local, coordinates, most_attempts(hosts) * arguments.local_epochs)
                    if saved is not None:
                        # The first round's epochs count, if this process ends before they are saved.
                        saved.write(first)
                    owner.epoch_meter.begin(owner, follow.callbacks, first, local, arguments.local_epochs)
                if meter is not None:
                    meter.begin(owner, sampler, follow.callbacks, first, exposure.hidden)
                follow.on_train_begin()
                for epoch in range(first, arguments.epochs):
                    follow.on_epoch_begin(epoch)
                    setting = Setting(session, epoch + 1, arguments.local_epochs, arguments.batch_size)
                    begun = time.perf_counter()
                    logs = self._round(engine, step, sampler.draw(), setting, generator, hosts, exposure)
                    exposure.seconds += time.perf_counter() - begun
                    if saved is not None:
                        saved.write(epoch + 1)
                    if arguments.validation_data is not None and (epoch + 1) % arguments.validation_freq == 0:
                        logs.update(self._validate(arguments, hosts))
                    follow.on_epoch_end(epoch, logs)
                    if owner.stop_training:
                        break
                follow.on_train_end()
            backup.finished()
        finally:
            if meter is not None:
                meter.end()
            owner.epoch_meter.end()
            aggregator.close()
        return owner.history

    def _resumed(self, arguments: FitArguments) -> tuple[Optional[Checkpoints], int]:
        """The folder of checkpoints if there is one, and the round that was done last."""
        owner = self._owner
        if arguments.checkpoints is None:
            return None, arguments.initial_epoch
        identity = {
            # Not names: Keras counts them up within a process.
            "model": [[variable.shape.as_list(), variable.dtype.name] for variable in owner.model.weights],
            "algorithm": repr(owner.algorithm),
            "client_optimizer": type(owner.model.optimizer).__name__,
            "server_optimizer": type(owner.server_optimizer).__name__,
        }
        variables = [*owner.model.weights, *owner.server_optimizer.variables, *owner.model.optimizer.variables]
        if owner.aggregator.private:
            variables += owner.privacy_meter.variables
        if owner.local_privacy is not None:
            variables += [*owner.local_meter.variables, *owner.epoch_meter.variables]
        saved = Checkpoints(arguments.checkpoints, identity, variables)
        done = saved.restore()
        if done and owner.local_privacy is not None:
            owner.local_meter.restored()
        owner.rounds_elsewhere += max(0, done - owner.rounds_done)
        owner.rounds_done = max(owner.rounds_done, done)
        return saved, max(done, arguments.initial_epoch)

    def _round(
        self,
        engine: Engine,
        step: ServerStep,
        names: list[str],
        setting: Setting,
        generator: Optional[np.random.Generator],
        hosts: workers.Workers,
        exposure: Exposure,
    ) -> dict[str, float]:
        aggregator, owner = self._owner.aggregator, self._owner
        if aggregator is not exposure.aggregator:
            raise ConfigurationError(
                "The aggregator was changed while a fit runs.",
                expected="one for the whole fit, whose rounds are charged and reported",
                remedy="Change it between fits.",
            )
        counted = None
        exposure.rounds += 1
        if names:
            reports, counted = engine.run(hosts, names, setting, generator, self._counts(setting.local_epochs))
            exposure.sent += len(names) * engine.sent_bytes
            exposure.received += reports.bytes_of(len(names))
        else:
            reports = engine.nothing()
        if aggregator.private:
            owner.privacy_meter.authorize_round()
            exposure.noise_multiplier = owner.privacy_meter.noise_multiplier
        total = aggregator.total(reports, Round(setting.session, setting.number, tuple(names)))
        if total.weight > 0:
            step.apply(total.mean)
        owner.rounds_done += 1
        logs = metric_values(owner.model, counted) if counted is not None else {}
        if total.clients is not None:
            logs["clients"] = float(total.clients)
        logs.update({name: float(value) for name, value in total.measurements.items()})
        return logs

    def _counts(self, local_epochs: int) -> Optional[Callable[[Sequence[str]], None]]:
        """Charges local epochs before they run."""
        if self._owner.local_privacy is None:
            return None
        return lambda names: self._owner.local_meter.count(names, local_epochs)

    def _validate(self, arguments: FitArguments, hosts: workers.Workers) -> dict[str, float]:
        data, owner = arguments.validation_data, self._owner
        if isinstance(data, Clients):
            owner.note_evaluation(data, hosts)
            found = owner._compiled()[1].federated(data, arguments.batch_size, False, True, hosts)
        elif isinstance(data, tuple):
            found = owner.model.evaluate(
                *data[:2], batch_size=max(arguments.batch_size, 32), verbose=0, return_dict=True
            )
        else:
            found = owner.model.evaluate(data, verbose=0, return_dict=True)
        return {f"val_{name}": value for name, value in found.items()}

    def _check_state(self, aggregator: Aggregator) -> None:
        if not aggregator.private:
            return
        moving = keras_state.moving_state(self._owner.model)
        if moving:
            raise UnsupportedModelError(
                f"Layers change {moving[0].name!r} and {len(moving) - 1} more variables by themselves in training, and "
                "the aggregator bounds what one client may change.",
                expected="a model without moving averages under differential privacy",
                remedy="Use keras_private.fix(model), which puts GroupNormalization in place of BatchNormalization.",
            )

    def _work(self, clients: Clients, shuffle: bool) -> local_work.LocalWork:
        """The client's work, traced once for each form of examples."""
        key = (repr(clients.element_spec), shuffle)
        if key not in self._works:
            assert self._owner.algorithm is not None
            self._works[key] = local_work.training(
                self._owner.model, clients.element_spec, self._owner.algorithm, shuffle, self._owner.local_privacy
            )
        return self._works[key]

    def _engine(self, work: local_work.LocalWork, clients: Clients, shuffle: bool) -> Engine:
        aggregator = self._owner.aggregator
        private = aggregator.private or self._owner.local_privacy is not None
        metrics = "none" if aggregator.hides_updates or private else "sum"
        if not isinstance(aggregator, Mean):
            return Engine(work, aggregator, clients, metrics)
        # Clients that are opened elsewhere bring the graph that opens them.
        key = (repr(clients.element_spec), shuffle, clients.opener)
        if key not in self._engines:
            self._engines[key] = Engine(work, aggregator, clients, metrics)
        return self._engines[key].of(clients)

    def personalize(
        self, clients: Clients, name: str, epochs: int, batch_size: int, optimizer: Any, arguments: dict[str, Any]
    ) -> Any:
        owner = self._owner
        build(owner.model, clients.element_spec)
        x, y = clients.whole(name)
        copy = copy_of(owner.model)
        copy.compile(
            fresh_optimizer(owner.model.optimizer if optimizer is None else optimizer, "optimizer"),
            loss=owner.model.loss,
            metrics=keras_state.compiled_metrics(owner.model),
        )
        copy.fit(x, y, epochs=epochs, batch_size=batch_size, **{"verbose": 0, **arguments})
        return copy


def metric_values(model: Any, counted: Any) -> dict[str, float]:
    """Figures of the compiled metrics, from sums of their variables over clients."""
    values = iter(counted)
    found: dict[str, float] = {}
    for metric in model.metrics:
        for variable in metric.variables:
            variable.assign(next(values))
        result = metric.result()
        if isinstance(result, dict):
            found.update({name: float(value) for name, value in result.items()})
        else:
            found[metric.name] = float(result)
    model.reset_metrics()
    return found
