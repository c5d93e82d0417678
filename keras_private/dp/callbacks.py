"""PrivacyBudget: charges every step of a `fit` before it runs, and stops the fit at a given epsilon."""

from __future__ import annotations

import contextlib
import os
import warnings
import weakref
from collections.abc import Iterator
from typing import Any, Optional, Union

import tensorflow as tf

from .._backends import keras_fit
from ..errors import BudgetExhaustedError, ConfigurationError, LedgerError
from .accounting import ADD_OR_REMOVE, POISSON, UNKNOWN, ZERO_OUT, Charge, check_budget
from .ledger import Ledger
from .metering import Budget, Meter
from .sampling import PoissonSampler


class PrivacyBudget(tf.keras.callbacks.Callback):
    """Keeps `model.fit` with a DPOptimizer within (epsilon, delta), over all fits that share a ledger.

    In the fit of a federated model with a private aggregator a step is a round, and the unit that epsilon is for is a
    client with all its examples. Such a model offers `privacy_meter`, which takes the place of the optimizer. Without a
    private aggregator and with a DPOptimizer at clients it offers `local_budget`: a step is a local epoch then, and the
    unit one example.

    Guarantees:
        - No step runs uncharged: steps are reserved in the ledger, durably, before the optimizer's gate in the
          graph lets them run. A crash at any point leaves the reservation charged.
        - Epsilon of everything in the ledger never passes the target: `fit` ends before the first step that
          would, and raises `BudgetExhaustedError` before the first batch if not one execution fits.
        - Amplification by sampling is credited only if `data` is a PoissonSampler, is the very object that the
          running fit iterates, and has the batch size that the optimizer divides by.
        - `epsilon` in the logs (History, progress bar, TensorBoard, CSVLogger) counts earlier fits too.

    Not covered by epsilon: the training loss and metrics in the logs, and choices made by them (early stopping,
    the best checkpoint); use validation data that is public or was never trained on.

    Args:
        epsilon: Target over all charges, above 0.
        delta: Target delta in (0, 1), well below 1 / examples.
        data: The PoissonSampler that is passed to `fit`. Without it one example may be in every step. Not for rounds,
            whose clients the federated model samples by itself.
        ledger: Path of the durable record; None keeps it in memory with the optimizer.
        accountant: "pld" or "rdp".

    Raises:
        ConfigurationError: An argument is out of range, or `data` is no PoissonSampler.
    """

    def __init__(
        self,
        epsilon: float,
        delta: float,
        data: Optional[PoissonSampler] = None,
        ledger: Union[str, os.PathLike[str], None] = None,
        accountant: str = "pld",
    ) -> None:
        super().__init__()
        check_budget(epsilon, delta, accountant)
        if data is not None and not isinstance(data, PoissonSampler):
            raise ConfigurationError(
                f"data is a {type(data).__name__}.",
                expected="the PoissonSampler that fit gets, or None",
                remedy="Pass PoissonSampler(x, y, batch_size=...) to both, or leave data out.",
            )
        self._supports_tf_logs = True
        self._data = data
        path = None if ledger is None else os.fspath(ledger)
        callback = weakref.ref(self)
        self._meter = Meter(
            Budget(float(epsilon), float(delta), accountant, path),
            in_use=lambda: _in_use(callback()),
        )
        self._rounds: Any = None
        self._per_execution = 1
        self._used_up = False
        self._warned: set[str] = set()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        raise TypeError("PrivacyBudget is final.")

    # Figures.

    @property
    def epsilon_spent(self) -> float:
        """Epsilon of all steps that ran so far, earlier fits in the ledger included; 0.0 before the first fit."""
        return self._meter.epsilon()

    def statement(self) -> str:
        """The figure with all that it means, rounded up: delta, neighbouring relation, sampling, accountant."""
        return self._in_unit(self._meter.statement())

    def charges_before(self, optimizer: Any) -> tuple[Charge, ...]:
        """What a fit with `optimizer` would find charged already.

        Raises:
            LedgerError: The ledger cannot be used with this optimizer.
        """
        charges = self._meter.open(optimizer)
        self._meter.close()
        return charges

    # Keras hooks.

    def on_train_begin(self, logs: Optional[dict[str, Any]] = None) -> None:
        self._rounds = _meter_of_rounds(self.model)
        optimizer = _dp_optimizer(self.model) if self._rounds is None else self._rounds
        fit = keras_fit.running_fit(self.model) if self._rounds is None else self._rounds.fit
        self._check_data(optimizer, fit)
        if fit is not None and fit.callbacks is not None:
            self._check_callbacks(fit.callbacks)
            keras_fit.move_first(self, fit.callbacks)
            keras_fit.leave_untimed(self)
        self._per_execution = (
            keras_fit.steps_per_execution(self.model) if self._rounds is None else self._rounds.steps_per_round
        )
        charge = self._charge_of_a_step(optimizer) if self._rounds is None else None
        steps, epochs = self.params.get("steps"), self.params.get("epochs")
        planned = None
        if steps is not None and epochs is not None:
            planned = steps * max(epochs - (fit.initial_epoch if fit else 0), 0)
        self._used_up = False
        spent = self._meter.open(optimizer)
        try:
            self._check_unit(optimizer)
            first = min(self._per_execution, steps or self._per_execution)
            num_examples = None if self._data is None else self._data.num_examples
            if charge is None:
                optimizer.calibrate(self._meter.budget, planned, spent)
                charge, num_examples = optimizer.charge(), optimizer.population
                planned, first = optimizer.planned(planned), self._per_execution
            with self._errors_in_unit():
                self._meter.begin(charge, planned, first, num_examples)
        except BaseException:
            self._meter.close()
            raise

    def on_epoch_begin(self, epoch: int, logs: Optional[dict[str, Any]] = None) -> None:
        self._meter.compare()
        if self._rounds is not None:
            self._rounds.open_round(self._announce)

    def _announce(self, steps: int) -> None:
        with self._errors_in_unit():
            self._meter.announce(steps)

    def on_train_batch_begin(self, batch: int, logs: Optional[dict[str, Any]] = None) -> None:
        if self._rounds is None:
            self._meter.announce(1 if self._per_execution == 1 else keras_fit.steps_per_execution(self.model))

    def on_train_batch_end(self, batch: int, logs: Optional[dict[str, Any]] = None) -> None:
        if self._rounds is None:
            self._stop_before(self._next_execution(batch))

    def on_epoch_end(self, epoch: int, logs: Optional[dict[str, Any]] = None) -> None:
        self._meter.compare()
        if self._rounds is not None:
            self._stop_before(self._per_execution)
        if logs is not None:
            logs["epsilon"] = self.epsilon_spent

    def on_train_end(self, logs: Optional[dict[str, Any]] = None) -> None:
        self._meter.end()
        if self._used_up and self.params.get("verbose"):
            print(f"Privacy budget used up, training stopped: {self.statement()}.")

    def _stop_before(self, execution: int) -> None:
        count = self._meter.count
        if count + execution > self._meter.left and count != self._meter.planned:
            self._used_up = True
            self.model.stop_training = True

    def _charge_of_a_step(self, optimizer: Any) -> Charge:
        coordinates = max(int(optimizer.noise_coordinates), _trainable_coordinates(self.model))
        q = None if self._data is None else self._data.sampling_probability
        sampler, adjacency = (UNKNOWN, ZERO_OUT) if q is None else (POISSON, ADD_OR_REMOVE)
        return Charge(float(optimizer.noise_multiplier), 0, q, sampler, adjacency, coordinates)

    def _next_execution(self, batch: int) -> int:
        steps = self.params.get("steps")
        if self._per_execution == 1 or steps is None:
            return self._per_execution
        return min(self._per_execution, steps - (batch + 1) or steps)

    def _in_unit(self, text: str) -> str:
        unit = "" if self._rounds is None else self._rounds.unit
        return text.replace("one example", f"one {unit}") if unit else text

    @contextlib.contextmanager
    def _errors_in_unit(self) -> Iterator[None]:
        try:
            yield
        except BudgetExhaustedError as error:
            if self._rounds is None:
                raise
            raise BudgetExhaustedError(
                self._in_unit(error.problem),
                expected=error.expected,
                remedy=self._rounds.remedy,
            ) from None

    # Checks.

    def _check_unit(self, optimizer: Any) -> None:
        """Refuses to add up charges for single examples and charges for clients."""
        path = self._meter.budget.path
        ledger = optimizer.ledger if path is None else Ledger.held(path)
        unit = "" if self._rounds is None else self._rounds.unit
        for session in () if ledger is None else ledger.sessions:
            if session.reserved and session.identity.rpartition(":")[0] != unit:
                raise LedgerError(
                    f"the ledger holds steps of {session.identity}, which protect another unit than one "
                    f"{unit or 'example'}.",
                    expected="one ledger for single examples and another for clients",
                    remedy="Name another file; the two guarantees do not add up.",
                )

    def _check_data(self, optimizer: Any, fit: Optional[keras_fit.RunningFit]) -> None:
        iterated = None if fit is None else fit.data
        if self._rounds is not None:
            if self._data is not None:
                raise ConfigurationError(
                    "data names a sampler of examples, and rounds sample clients.",
                    expected="PrivacyBudget(epsilon, delta) for a federated model",
                    remedy="Leave data out; fit(sampling='poisson') is the default of private aggregators.",
                )
            return
        if self._data is None:
            if isinstance(iterated, PoissonSampler):
                self._warn(
                    "data",
                    "fit iterates a PoissonSampler but PrivacyBudget was not told: no amplification is credited. "
                    "Pass PrivacyBudget(..., data=sampler).",
                )
            return
        if iterated is not self._data:
            raise ConfigurationError(
                "data is not what the running fit iterates: "
                + ("that cannot be determined." if iterated is None else f"a {type(iterated).__name__}."),
                expected="the same PoissonSampler object in model.fit(data, ...) and PrivacyBudget(data=data)",
                remedy="Pass the sampler itself to model.fit, or leave data out and forgo amplification.",
            )
        if self._data.batch_size != optimizer.expected_batch_size:
            raise ConfigurationError(
                f"the sampler draws {self._data.batch_size} examples in expectation, the optimizer divides by "
                f"{optimizer.expected_batch_size:g}.",
                expected="one expected batch size",
                remedy=f"DPOptimizer(..., expected_batch_size={self._data.batch_size})",
            )

    def _check_callbacks(self, callbacks: list[Any]) -> None:
        if sum(isinstance(callback, PrivacyBudget) for callback in callbacks) > 1:
            raise ConfigurationError(
                "fit got two PrivacyBudgets.",
                expected="one, since each would charge every step",
                remedy="Keep the one with the smaller epsilon.",
            )
        for callback in callbacks:
            name, monitor = type(callback).__name__, str(getattr(callback, "monitor", "val_"))
            chooses = isinstance(callback, (tf.keras.callbacks.EarlyStopping, tf.keras.callbacks.ReduceLROnPlateau))
            chooses = chooses or bool(getattr(callback, "save_best_only", False))
            if chooses and not monitor.startswith("val_"):
                self._warn(
                    name,
                    f"{name} decides by '{monitor}' of the private training data, which epsilon does not cover. "
                    "Monitor a quantity of public validation data.",
                )

    def _warn(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(message, stacklevel=2)


def _in_use(callback: Any) -> bool:
    rounds = getattr(callback, "_rounds", None)
    return keras_fit.is_in_running_fit(callback) if rounds is None else rounds.fit is not None


def _meter_of_rounds(model: Any) -> Any:
    """What a federated model has in the place of the optimizer; None of a Keras model."""
    found = getattr(model, "local_budget", None)
    return getattr(model, "privacy_meter", None) if found is None else found


def _dp_optimizer(model: Any) -> Any:
    optimizer = getattr(model, "optimizer", None)
    if getattr(optimizer, "is_dp_optimizer", False):
        return optimizer
    if not isinstance(model, tf.keras.Model):
        raise ConfigurationError(
            f"the fit of {type(model).__name__} adds no noise, so that there is nothing to charge.",
            expected="PrivacyBudget in the fit of a Keras model with a DPOptimizer, or of a FederatedModel",
            remedy="Leave PrivacyBudget out, or train with one of these.",
        )
    scaled = hasattr(optimizer, "get_scaled_loss") or "LossScale" in type(optimizer).__name__
    raise ConfigurationError(
        f"the model is compiled with {type(optimizer).__name__}.",
        expected="a keras_private.DPOptimizer" + (" that nothing wraps" if scaled else ""),
        remedy="Do not use dynamic loss scaling: it rescales the private update by what the data did. Set the policy "
        "to 'float32' or 'mixed_bfloat16'."
        if scaled
        else "model.compile(keras_private.DPOptimizer('adam', ...)), or use keras_private.make_private(model).",
    )


def _trainable_coordinates(model: Any) -> int:
    if not getattr(model, "built", True):
        raise ConfigurationError(
            "the model is not built, so that the noise of its steps cannot be charged.",
            expected="a model with weights when fit begins",
            remedy="Give it an Input, or call it on one batch before fit.",
        )
    return sum(int(variable.shape.num_elements()) for variable in model.trainable_variables)
