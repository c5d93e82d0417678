"""DPOptimizer: per-example clipping, noise and step counting around any Keras optimizer."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy as np
import tensorflow as tf

from .._backends import graph as tf_graph
from .._backends import keras_fit
from ..errors import ConfigurationError, GradientSourceError, LedgerError, UnsupportedModelError
from .empty import refuse_empty_batches
from .engine import coordinates_of, private_gradients
from .loops import refuse_data_dependent_loops
from .mechanisms import GaussianMechanism

if TYPE_CHECKING:
    from .ledger import Ledger

UNLIMITED = np.iinfo(np.int64).max
GRADIENTS_FROM_OUTSIDE = (
    "call optimizer.minimize(loss, model.trainable_variables, tape=tape) inside the traced train step, or use "
    "keras_private.make_private(model)"
)


class _Gate:
    """What must never enter a checkpoint: plain attributes here are invisible to Keras and TensorFlow."""

    def __init__(self) -> None:
        with tf.init_scope():
            self.steps_authorized = tf.Variable(UNLIMITED, trainable=False, dtype=tf.int64, name="authorized")
            # Counted apart from steps_done, which a restored checkpoint winds back.
            self.steps_run = tf.Variable(0, trainable=False, dtype=tf.int64, name="steps_run")
        self.closed = False
        self.issued: list[tf.Tensor] = []
        self.issued_in: Any = None
        self.ledger: Optional[Ledger] = None
        self.coordinates = 0


@tf.keras.utils.register_keras_serializable(package="keras_private")
class DPOptimizer(tf.keras.optimizers.Optimizer):
    """Makes every update of a Keras model differentially private.

    The gradient handed to the inner optimizer is
    `(sum_i clip(g_i, l2_norm_clip) + noise) / expected_batch_size`, where g_i is the whole gradient of example
    i over all trainable variables (Abadi et al. 2016, "Deep learning with differential privacy", algorithm 1).

    Guarantees:
        - The clipped sum moves by at most `l2_norm_clip` (up to a stated float32 slack that the noise covers)
          when one example is added or removed.
        - The step is accepted only if the traced graph proves that rows of one example depend on no other;
          anything else raises `UnsupportedModelError`, never trains.
        - An example with NaN or Inf in its gradient counts as zero; the step goes on with its noise.
        - Every step that runs is counted in `steps_done`, which is saved with the optimizer.
        - `apply_gradients` takes only what `compute_gradients` of this object made in the same trace.

    Not guaranteed: that batches are sampled at random. Amplification is credited only by
    `PrivacyBudget(data=PoissonSampler(...))`; without it one record may be in every step.

    Args:
        optimizer: A Keras optimizer, its name or its config.
        l2_norm_clip: L2 bound C for the gradient of one example, above 0.
        noise_multiplier: Noise standard deviation divided by the sensitivity; 0 means no privacy.
        expected_batch_size: The divisor of the noisy sum; the expected, never the realised, batch size.

    Raises:
        ConfigurationError: An argument is out of range, or the optimizer is a legacy one.
    """

    is_dp_optimizer = True

    def __init__(
        self,
        optimizer: Union[str, dict[str, Any], tf.keras.optimizers.Optimizer] = "sgd",
        l2_norm_clip: float = 1.0,
        noise_multiplier: float = 1.0,
        expected_batch_size: float = 32,
        name: str = "dp_optimizer",
        **kwargs: Any,
    ) -> None:
        inner = _inner_optimizer(optimizer)
        _require(l2_norm_clip > 0 and np.isfinite(l2_norm_clip), "l2_norm_clip", l2_norm_clip, "above 0")
        _require(
            noise_multiplier >= 0 and np.isfinite(noise_multiplier),
            "noise_multiplier",
            noise_multiplier,
            "0 or more",
        )
        _require(
            expected_batch_size > 0 and np.isfinite(expected_batch_size),
            "expected_batch_size",
            expected_batch_size,
            "above 0",
        )
        super().__init__(name=name, jit_compile=False, **kwargs)
        self._inner = inner
        self._l2_norm_clip = float(l2_norm_clip)
        self._noise_multiplier = float(noise_multiplier)
        self._expected_batch_size = float(expected_batch_size)
        with tf.init_scope():
            self.steps_done = tf.Variable(0, trainable=False, dtype=tf.int64, name="steps_done")
            random_bits = np.frombuffer(os.urandom(16), dtype=np.int64)
            self._identity = tf.Variable(random_bits, trainable=False, dtype=tf.int64, name="identity")
        self._gate = _Gate()

    # Public knobs: fixed at construction, so that what was accounted is what ran.

    @property
    def inner_optimizer(self) -> tf.keras.optimizers.Optimizer:
        return self._inner

    @property
    def l2_norm_clip(self) -> float:
        return self._l2_norm_clip

    @property
    def noise_multiplier(self) -> float:
        return self._noise_multiplier

    @property
    def expected_batch_size(self) -> float:
        return self._expected_batch_size

    @property
    def noise_coordinates(self) -> int:
        """Number of coordinates that get noise in each step; 0 before the optimizer is built."""
        return self._gate.coordinates

    @property
    def identity(self) -> str:
        """Names this optimizer in a privacy ledger; drawn once, saved and restored with its weights."""
        return self._identity.numpy().astype(">i8").tobytes().hex()

    # The budget gate.

    def gate(self) -> None:
        """Closes the gate: from now on only steps given by `authorize` run."""
        if not self._gate.closed:
            self._gate.closed = True
            self._gate.steps_authorized.assign(self._gate.steps_run)

    def authorize(self, total_steps: int) -> None:
        """Lets steps run until `steps_done`, as it is now, has grown to `total_steps`.

        A checkpoint that is restored later winds `steps_done` back, but lets no more steps run.
        """
        self._gate.steps_authorized.assign(self._gate.steps_run + total_steps - self.steps_done)

    def _recalibrate(self, noise_multiplier: float, expected_batch_size: float) -> None:
        """New noise for the next fit of a private model, which drops every step traced with the old noise."""
        self._noise_multiplier = float(noise_multiplier)
        self._expected_batch_size = float(expected_batch_size)

    @property
    def ledger(self) -> Ledger:
        """The in-memory record of this optimizer's charges, for fits without a ledger file."""
        if self._gate.ledger is None:
            from .ledger import Ledger

            self._gate.ledger = Ledger.open(None)
        return self._gate.ledger

    # The training step.

    @tf.autograph.experimental.do_not_convert
    def minimize(self, loss: tf.Tensor, var_list: Sequence[tf.Variable], tape: Any = None) -> Any:
        return self.apply_gradients(self.compute_gradients(loss, var_list, tape))

    @tf.autograph.experimental.do_not_convert
    def compute_gradients(
        self, loss: tf.Tensor, var_list: Sequence[tf.Variable], tape: Any = None
    ) -> list[tuple[Optional[tf.Tensor], tf.Variable]]:
        """The private gradient of `loss`.

        Args:
            loss: Tensor of the traced train step: a scalar, or per-example losses.
            var_list: Trainable variables.
            tape: Unused: the gradient is taken from the graph.

        Returns:
            (gradient, variable) pairs for `apply_gradients`.

        Raises:
            UnsupportedModelError: The step runs eagerly or cannot be proven private.
            ConfigurationError: Keras tunes steps_per_execution, or draws of a PoissonSampler may be empty and
                convolutions cannot take that.
        """
        if callable(loss):
            loss = loss()
        if callable(var_list):
            var_list = var_list()
        _require_graph(loss)
        _require_known_steps()
        variables = list(var_list)
        if len({variable.ref() for variable in variables}) < len(variables):
            raise ConfigurationError(
                "a variable was given more than once, and would be released more than once.",
                expected="every trainable variable once",
                remedy="Pass model.trainable_variables.",
            )
        mechanism = self._mechanism(variables)
        with loss.graph.as_default():
            gradients = private_gradients(loss, variables, mechanism, self._expected_batch_size)
            refuse_data_dependent_loops()
            refuse_empty_batches(loss.graph)
            if all(gradient is None for gradient in gradients):
                raise UnsupportedModelError(
                    f"loss '{loss.name}' depends on none of the {len(variables)} trainable variables.",
                    expected="a loss that depends on the model's weights",
                    remedy="Check that the loss uses the model's output and that layers are trainable.",
                )
            with tf.control_dependencies([self._count_step()]):
                gradients = [None if item is None else tf.identity(item) for item in gradients]
        self._gate.issued = [item for item in gradients if item is not None]
        self._gate.issued_in = weakref.ref(loss.graph)
        return list(zip(gradients, variables))

    def _mechanism(self, variables: Sequence[tf.Variable]) -> GaussianMechanism:
        coordinates = coordinates_of(variables)
        self._gate.coordinates = max(self._gate.coordinates, coordinates)
        return GaussianMechanism(self._l2_norm_clip, self._noise_multiplier, coordinates)

    def _count_step(self) -> tf.Operation:
        authorized = tf.debugging.Assert(
            self._gate.steps_run < self._gate.steps_authorized,
            ["Privacy budget: this step is not authorized and was not applied. steps_done:", self.steps_done],
            name="authorized",
        )
        with tf.control_dependencies([authorized]):
            return tf.group(
                self.steps_done.assign_add(1, read_value=False),
                self._gate.steps_run.assign_add(1, read_value=False),
            )

    @tf.autograph.experimental.do_not_convert
    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Optional[tf.Tensor], tf.Variable]],
        name: Optional[str] = None,
        skip_gradients_aggregation: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Hands private gradients to the inner optimizer.

        Raises:
            GradientSourceError: A gradient was not made by `compute_gradients` of this object in this trace.
        """
        pairs = list(grads_and_vars)
        given = [gradient for gradient, _ in pairs if gradient is not None]
        issued, graph = self._gate.issued, self._gate.issued_in and self._gate.issued_in()
        self._gate.issued, self._gate.issued_in = [], None
        same_trace = graph is not None and not tf.executing_eagerly() and tf.compat.v1.get_default_graph() is graph
        mine = len(given) == len(issued) and all(one is other for one, other in zip(given, issued))
        if not (same_trace and mine):
            raise GradientSourceError(
                f"apply_gradients received {len(given)} gradients that compute_gradients of this optimizer did "
                "not make in this trace.",
                expected="exactly the pairs that compute_gradients returned, unchanged, in the same trace",
                remedy=GRADIENTS_FROM_OUTSIDE + ".",
            )
        with tf.init_scope():
            self.build([variable for _, variable in pairs])
        return self._inner.apply_gradients(pairs, skip_gradients_aggregation=True)

    # Keras optimizer interface, handed to the inner optimizer.

    def build(self, var_list: Sequence[tf.Variable]) -> None:
        self._gate.coordinates = max(self._gate.coordinates, coordinates_of(var_list))
        if not getattr(self._inner, "_built", False):
            self._inner.build(list(var_list))

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        raise GradientSourceError(
            f"update_step was called for '{variable.name}' outside apply_gradients.",
            expected="gradients that compute_gradients made",
            remedy=GRADIENTS_FROM_OUTSIDE + ".",
        )

    def finalize_variable_values(self, var_list: Sequence[tf.Variable]) -> None:
        self._inner.finalize_variable_values(var_list)

    def _create_iteration_variable(self) -> None:
        """The inner optimizer counts iterations."""

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> Any:
        if save_type == "savedmodel":
            # Keras makes a fresh optimizer when it loads one.
            raise ConfigurationError(
                "a SavedModel does not bring its optimizer back, so that the steps done would be forgotten.",
                expected="a model saved as '.keras', or without its optimizer",
                remedy="model.save('model.keras'); to serve it, model.save(folder, include_optimizer=False).",
            )
        return super()._trackable_children(save_type, **kwargs)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Puts back the values of `variables`: how Keras restores an optimizer from an HDF5 file.

        Raises:
            LedgerError: They are not those of such an optimizer. Steps that were done would be forgotten.
        """
        variables, values = list(self.variables), [np.asarray(value) for value in weights]
        if [value.shape for value in values] != [tuple(variable.shape) for variable in variables]:
            raise LedgerError(
                f"{len(values)} saved values do not fit the {len(variables)} variables of this optimizer, so that the "
                "steps done before are not known.",
                expected="what was saved of a DPOptimizer with the same inner optimizer, built for the same weights",
                remedy="Save and load the model as '.keras'; load with compile=False to give up the optimizer.",
            )
        for variable, value in zip(variables, values):
            variable.assign(value)

    @property
    def iterations(self) -> tf.Variable:
        return self._inner.iterations

    @iterations.setter
    def iterations(self, variable: tf.Variable) -> None:
        self._inner.iterations = variable

    @property
    def learning_rate(self) -> Any:
        return self._inner.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self._inner.learning_rate = value

    @property
    def lr(self) -> Any:
        return self._inner.learning_rate

    @lr.setter
    def lr(self, value: Any) -> None:
        self._inner.learning_rate = value

    @property
    def variables(self) -> Any:
        inner = self._inner.variables
        return type(inner)([*inner, self.steps_done, self._identity])

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "optimizer": tf.keras.optimizers.serialize(self._inner),
            "l2_norm_clip": self._l2_norm_clip,
            "noise_multiplier": self._noise_multiplier,
            "expected_batch_size": self._expected_batch_size,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> DPOptimizer:
        config = dict(config)
        if isinstance(config["optimizer"], dict):
            config["optimizer"] = tf.keras.optimizers.deserialize(config["optimizer"], custom_objects)
        return cls(**config)

    def privacy_spent(self, delta: float) -> float:
        """Epsilon at `delta` of all steps this optimizer has run, as recorded by its in-memory ledger.

        Steps that ran without a PrivacyBudget are charged without amplification: one record may have been in
        every one of them. Adjacency: zero out one example, which such a figure allows; charges of Poisson draws
        hold for adding or removing one too.
        """
        from .accounting import epsilon

        charges = self.ledger.charges_of(self)
        return epsilon(charges, delta)


def _require(condition: bool, argument: str, value: Any, expected: str) -> None:
    if not condition:
        raise ConfigurationError(
            f"{argument}={value!r} cannot be used.",
            expected=f"a finite number, {expected}",
            remedy=f"Pass another {argument}.",
        )


def _inner_optimizer(optimizer: Any) -> tf.keras.optimizers.Optimizer:
    inner = tf.keras.optimizers.get(optimizer)
    accepted = isinstance(inner, tf.keras.optimizers.Optimizer)
    refused = getattr(inner, "is_dp_optimizer", False) or hasattr(inner, "get_scaled_loss")
    if not accepted or refused:
        raise ConfigurationError(
            f"optimizer {inner!r} cannot be wrapped.",
            expected="a tf.keras.optimizers.Optimizer that is neither legacy, nor scales the loss, nor is a "
            "DPOptimizer already",
            remedy="Use the optimizer of the same name in tf.keras.optimizers.",
        )
    return inner


def _require_graph(loss: Any) -> None:
    if tf.executing_eagerly() or not hasattr(loss, "graph"):
        raise UnsupportedModelError(
            "the training step runs eagerly (run_eagerly=True, tf.config.run_functions_eagerly, or a bare tape "
            "loop), where there is no graph to prove private.",
            expected="a train step traced by tf.function, as model.fit does by default",
            remedy="Leave run_eagerly unset, or put your loop's step into a tf.function.",
        )
    if tf_graph.is_branch(loss.graph):
        raise UnsupportedModelError(
            "the training step stands in a branch of tf.cond, so that data could decide whether it runs.",
            expected="a step that runs, and is charged, whatever the data",
            remedy="Call minimize outside tf.cond.",
        )
    if tf.distribute.has_strategy():
        raise UnsupportedModelError(
            f"the training step runs under {type(tf.distribute.get_strategy()).__name__}.",
            expected="the default strategy: one replica",
            remedy="Build and fit the model outside strategy.scope().",
        )


def _require_known_steps() -> None:
    """Refuses steps_per_execution="auto": Keras would change the number of steps while it trains."""
    fit = keras_fit.running_fit()
    if fit is not None:
        with tf.init_scope():
            keras_fit.steps_per_execution(fit.model)
