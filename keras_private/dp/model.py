"""make_private: a Keras model of the same architecture whose ordinary fit is differentially private."""

from __future__ import annotations

import math
import os
import time
import warnings
from typing import Any, Optional

import tensorflow as tf

from .._backends import keras_fit
from .._backends.graph import inlined_functions
from ..errors import ConfigurationError, UnsupportedModelError
from .accounting import calibrate_noise
from .callbacks import PrivacyBudget
from .empty import may_be_empty, with_a_row
from .fit_arguments import callback_list, fold_class_weight, sampler_over, split_arrays
from .optimizer import DPOptimizer
from .reporting import privacy_report
from .sampling import PoissonSampler
from .validation import refuse_batch_normalization, refuse_layers_on_parties, require_keras_model

# The mix-in's super() is a keras.Model; Keras would rewrite the bases of a class that inherits from it.
_Mixin: Any = object


class PrivateTraining(_Mixin):
    """The compile, fit and train_step of a private model; mixed into a keras.Model.

    Guarantees:
        - Every batch is a fresh Poisson draw; every step clips per example, adds calibrated noise and is charged.
        - A fit never spends more than (epsilon, delta) under add-or-remove-one-example adjacency, earlier fits and
          everything in the ledger file included.
        - tf.functions inside the model are traced inline, so that the proof sees them.
        - Nothing but the private gradient and Keras metrics of the data is kept by a step.

    Weights are shared with the model it was made from. Metrics in History, and choices made by looking at them on
    training data, are not covered by epsilon.
    """

    trains_privately = True

    def _set_privacy(
        self,
        epsilon: float,
        delta: float,
        l2_norm_clip: float,
        noise_multiplier: Optional[float],
        ledger: Any,
        accountant: str,
    ) -> None:
        self._shapes: Any = None
        self._may_be_empty = False
        self._seconds = 0.0
        self._privacy: dict[str, Any] = {
            "epsilon": float(epsilon),
            "delta": float(delta),
            "l2_norm_clip": float(l2_norm_clip),
            "noise_multiplier": noise_multiplier,
            "ledger": None if ledger is None else os.fspath(ledger),
            "accountant": accountant,
        }

    # Compile: any Keras optimizer, wrapped.

    def compile(self, optimizer: Any = "rmsprop", *args: Any, **kwargs: Any) -> None:
        """As keras.Model.compile; the optimizer is wrapped in a DPOptimizer that `fit` calibrates.

        Raises:
            ConfigurationError: run_eagerly, jit_compile or an auto-tuned steps_per_execution is asked for, or a
                DPOptimizer of another clip norm is passed.
        """
        for option, refused in (
            ("run_eagerly", True),
            ("jit_compile", True),
            ("steps_per_execution", "auto"),
        ):
            if kwargs.get(option) == refused:
                raise ConfigurationError(
                    f"{option}={refused!r} cannot be private: the step must be a traced graph with a known "
                    "number of steps, and the noise operation runs outside XLA.",
                    expected=f"{option} left at its default",
                    remedy=f"Leave {option} out of compile.",
                )
        if isinstance(optimizer, DPOptimizer):
            if optimizer.l2_norm_clip != self._privacy["l2_norm_clip"]:
                raise ConfigurationError(
                    f"the DPOptimizer clips at {optimizer.l2_norm_clip}, the private model at "
                    f"{self._privacy['l2_norm_clip']}.",
                    expected="one clip norm",
                    remedy="Pass the inner optimizer, for example 'adam'; make_private wraps it.",
                )
        else:
            optimizer = DPOptimizer(optimizer, l2_norm_clip=self._privacy["l2_norm_clip"])
        # Only fit knows how much noise the budget needs: until then no step may run.
        optimizer.gate()
        super().compile(optimizer, *args, **kwargs)

    # Fit: Poisson batches, calibrated noise, the budget gate.

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: Optional[int] = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: Any = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: Optional[int] = None,
        **kwargs: Any,
    ) -> tf.keras.callbacks.History:
        """As keras.Model.fit, privately: batches are Poisson draws of expected size `batch_size` (default 32).

        Noise is calibrated so that all planned steps, (epochs - initial_epoch) * steps per epoch, together with
        everything spent before stay within (epsilon, delta). `epsilon` is in the History and the progress bar.

        Args:
            x: Arrays or a nested structure of arrays, or a PoissonSampler. Datasets and generators are refused:
                they do not say how they sample.
            y, batch_size, epochs, verbose, callbacks, validation_data, class_weight, initial_epoch: as in Keras.
            validation_split: The last fraction of the arrays is kept for validation and never trained on.
            shuffle: Has no effect: every batch is drawn afresh.
            sample_weight: As in Keras; rows of a per-example weight.
            steps_per_epoch: Draws per epoch; by default ceil(examples / batch_size).

        Raises:
            BudgetExhaustedError: Nothing of the budget is left for the planned steps.
            ConfigurationError: The data cannot be sampled, or a PrivacyBudget is passed by hand.
        """
        if not isinstance(getattr(self, "optimizer", None), DPOptimizer):
            raise RuntimeError(
                "You must compile your model before training/testing. Use `model.compile(...)`."
            )
        callbacks = callback_list(callbacks)
        if not isinstance(x, PoissonSampler) and validation_split:
            (x, y, sample_weight), validation_data = split_arrays(x, y, sample_weight, validation_split)
        if not isinstance(x, PoissonSampler):
            sample_weight, class_weight = fold_class_weight(y, sample_weight, class_weight), None
        sampler = sampler_over(x, y, batch_size, sample_weight, steps_per_epoch)
        budget = PrivacyBudget(
            self._privacy["epsilon"],
            self._privacy["delta"],
            data=sampler,
            ledger=self._privacy["ledger"],
            accountant=self._privacy["accountant"],
        )
        self._build_on(sampler)
        self._calibrate(budget, sampler, (epochs - self._first_epoch(callbacks, initial_epoch)) * len(sampler))
        self._shapes = sampler.element_shapes
        self._may_be_empty = may_be_empty(sampler.num_examples, sampler.sampling_probability)
        begun = time.perf_counter()
        history = super().fit(
            sampler,
            epochs=epochs,
            verbose=verbose,
            callbacks=[budget, *callbacks],
            validation_data=validation_data,
            class_weight=class_weight,
            initial_epoch=initial_epoch,
            **kwargs,
        )
        self._seconds += time.perf_counter() - begun
        # What a metric has summed up is exact and would be saved with the model.
        self.reset_metrics()
        return history

    def _first_epoch(self, callbacks: list[Any], initial_epoch: int) -> int:
        """The epoch that fit begins with, after what BackupAndRestore may bring back."""
        if self._privacy["ledger"] is None and keras_fit.backs_up(callbacks):
            warnings.warn(
                "BackupAndRestore without a ledger: after an interruption nothing says how the steps before were "
                "sampled, and they are charged without amplification. Give make_private(..., ledger='spent.json').",
                stacklevel=3,
            )
        return keras_fit.epoch_after_restoring(callbacks, initial_epoch)

    def privacy_report(self) -> Any:
        """Who learns what from the fits so far: a PrivacyReport, at this model's delta.

        Raises:
            LedgerError: The ledger cannot be read, or does not cover the steps of this model.
            RuntimeError: The model is not compiled.
        """
        if not isinstance(getattr(self, "optimizer", None), DPOptimizer):
            raise RuntimeError("You must compile your model before asking for its report. Use `model.compile(...)`.")
        privacy = self._privacy
        seconds = self._seconds or None
        return privacy_report(self, privacy["delta"], privacy["accountant"], privacy["ledger"], seconds=seconds)

    def _build_on(self, sampler: PoissonSampler) -> None:
        """Gives a deferred model its weights, as Keras does on the first batch."""
        if not self.built:
            features = sampler[0][0]
            self(tf.nest.map_structure(lambda array: tf.zeros((1, *array.shape[1:]), array.dtype), features))
        self.optimizer.build(self.trainable_variables)

    def _calibrate(self, budget: PrivacyBudget, sampler: PoissonSampler, steps: int) -> None:
        """Sets the noise for `steps` further steps and drops any step traced with other noise."""
        noise_multiplier = self._privacy["noise_multiplier"]
        if noise_multiplier is None and steps > 0:
            noise_multiplier = calibrate_noise(
                self._privacy["epsilon"],
                self._privacy["delta"],
                steps,
                sampler.sampling_probability,
                spent=budget.charges_before(self.optimizer),
                accountant=self._privacy["accountant"],
                noise_coordinates=self.optimizer.noise_coordinates,
            )
        if noise_multiplier is not None:
            self.optimizer._recalibrate(noise_multiplier, sampler.batch_size)
        self.train_function = None

    def _shaped(self, data: Any) -> Any:
        """Gives the batch the shapes that Keras drops from a Sequence, and checks them at run time."""
        if self._shapes is None:
            return data
        known = len(self._shapes)  # Keras may have added weights made from class_weight.
        shaped = tf.nest.map_structure(tf.ensure_shape, tuple(data[:known]), self._shapes)
        return (*shaped, *data[known:])

    def train_step(self, data: Any) -> dict[str, Any]:
        """One private step on one Poisson draw."""
        x, y, sample_weight = tf.keras.utils.unpack_x_y_sample_weight(self._shaped(data))
        if self._may_be_empty and y is not None:
            x, y, sample_weight = with_a_row(x, y, sample_weight)
        with inlined_functions():
            y_pred = self(x, training=True)
            loss = self.compute_loss(x, y, y_pred, sample_weight)
        self._validate_target_and_loss(y, loss)
        self.optimizer.minimize(loss, self.trainable_variables)
        return self.compute_metrics(x, y, y_pred, sample_weight)

    def make_train_function(self, force: bool = False) -> Any:
        if type(self).train_step is not PrivateTraining.train_step:
            raise UnsupportedModelError(
                f"{type(self).__name__} overrides train_step.",
                expected="the train_step of the private model",
                remedy="Put the loss into compile(loss=...) or add_loss; use DPOptimizer.minimize in your own model.",
            )
        return super().make_train_function(force)

    def save(self, filepath: Any, overwrite: bool = True, save_format: Optional[str] = None, **kwargs: Any) -> None:
        """As keras.Model.save, in Keras's own format.

        Raises:
            ConfigurationError: Another format, which Keras could not load again.
        """
        if save_format not in (None, "keras") or not os.fspath(filepath).endswith(".keras"):
            raise ConfigurationError(
                f"{os.fspath(filepath)!r} would be an HDF5 file or a SavedModel, from which Keras cannot make a "
                "private model again.",
                expected="a path that ends with '.keras'",
                remedy="Rename it; or save the model that make_private was given, which has the same weights.",
            )
        super().save(filepath, overwrite=overwrite, save_format=save_format, **kwargs)

    def load_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> Any:
        """As keras.Model.load_weights; the steps that the optimizer has done come along, where the file holds them."""
        if self.built and isinstance(getattr(self, "optimizer", None), DPOptimizer):
            self.optimizer.build(self.trainable_variables)
        return super().load_weights(filepath, *args, **kwargs)

    def get_compile_config(self) -> Any:
        return super().get_compile_config()

    def compile_from_config(self, config: Any) -> None:
        """Compiles a loaded model with its saved optimizer, loss and metrics."""
        self.compile(**tf.keras.utils.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        raise UnsupportedModelError(
            "train_on_batch trains on a batch that was chosen outside the sampler.",
            expected="private_model.fit(x, y), which draws every batch itself",
            remedy="Use fit.",
        )

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        config = dict(config)
        model = config.pop("model")
        if isinstance(model, dict):
            model = tf.keras.utils.deserialize_keras_object(model, custom_objects)
        return cls(model, **config)  # type: ignore[call-arg]


@tf.keras.utils.register_keras_serializable(package="keras_private")
class PrivateModel(PrivateTraining, tf.keras.Model):
    """A subclassed or deferred Keras model with private training."""

    def __init__(self, model: tf.keras.Model, *privacy: Any, **named_privacy: Any) -> None:
        super().__init__(name=model.name)
        self.wrapped = model
        self._set_privacy(*privacy, **named_privacy)

    def call(self, inputs: Any, training: Any = None) -> Any:
        return self.wrapped(inputs, training=training)

    def get_config(self) -> dict[str, Any]:
        return {"model": tf.keras.utils.serialize_keras_object(self.wrapped), **self._privacy}


@tf.keras.utils.register_keras_serializable(package="keras_private")
class PrivateFunctional(PrivateTraining, tf.keras.Model):
    """A functional or built Sequential Keras model with private training: same layers, same summary.

    Apart from PrivateModel because Keras turns the class of a model made from inputs and outputs into a functional
    one, for all its instances.
    """

    def __init__(self, model: tf.keras.Model, *privacy: Any, **named_privacy: Any) -> None:
        super().__init__(inputs=model.inputs, outputs=model.outputs, name=model.name)
        self._set_privacy(*privacy, **named_privacy)

    def get_config(self) -> dict[str, Any]:
        model = tf.keras.Model(self.inputs, self.outputs, name=self.name)
        return {"model": tf.keras.utils.serialize_keras_object(model), **self._privacy}


def make_private(
    model: tf.keras.Model,
    epsilon: float,
    delta: float,
    l2_norm_clip: float = 1.0,
    *,
    noise_multiplier: Optional[float] = None,
    ledger: Optional[str] = None,
    accountant: str = "pld",
) -> PrivateTraining:
    """Returns a keras.Model of the same architecture, sharing its weights, whose fit is private.

    Args:
        model: Functional, Sequential or subclassed Keras model.
        epsilon: Bound over everything this model's fits spend, above 0.
        delta: Probability with which the bound may fail, between 0 and 1; well below 1 / examples.
        l2_norm_clip: Bound on the L2 norm of one example's gradient.
        noise_multiplier: Fixes the noise instead of calibrating it; fit then stops when the budget is used up.
        ledger: Path of a durable record of the steps spent, for training that may be interrupted or resumed.
        accountant: "pld" or "rdp".

    Raises:
        UnsupportedModelError: The model has trainable BatchNormalization, layers that compute at three parties, or its
            own train_step.
        ConfigurationError: A number is out of range, the policy is mixed_float16, or `model` is no Keras model.
    """
    _check_numbers(epsilon=epsilon, delta=delta, l2_norm_clip=l2_norm_clip)
    if delta >= 1:
        raise ConfigurationError(
            f"delta={delta!r} promises nothing.", expected="0 < delta < 1", remedy="Try 1e-5."
        )
    require_keras_model(model, "a private fit", "every step of it is clipped, noised and charged")
    refuse_batch_normalization(model)
    refuse_layers_on_parties(model, "What they do with an example cannot be bounded in the private step.")
    for method in ("train_step", "compute_loss"):
        if getattr(type(model), method) is not getattr(tf.keras.Model, method):
            raise UnsupportedModelError(
                f"{type(model).__name__} has its own {method}, which the private model would not run.",
                expected="a model that trains by the standard train_step and compiled loss",
                remedy=f"Remove {method} (losses go into compile or add_loss), or use DPOptimizer.minimize inside it.",
            )
    if model.dtype_policy.name == "mixed_float16":
        raise ConfigurationError(
            "policy 'mixed_float16' wraps the optimizer in dynamic loss scaling, whose scale depends on the data.",
            expected="policy 'float32', 'float64' or 'mixed_bfloat16'",
            remedy="tf.keras.mixed_precision.set_global_policy('float32') before building the model.",
        )
    functional = bool(getattr(model, "inputs", None)) and bool(getattr(model, "outputs", None))
    made = PrivateFunctional if functional else PrivateModel
    return made(model, epsilon, delta, l2_norm_clip, noise_multiplier, ledger, accountant)


def _check_numbers(**numbers: float) -> None:
    for name, value in numbers.items():
        if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
            raise ConfigurationError(
                f"{name}={value!r} cannot be used.",
                expected="a finite number above 0",
                remedy=f"Pass another {name}.",
            )
