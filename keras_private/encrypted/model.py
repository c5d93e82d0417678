"""EncryptedModel: Keras's compile, fit, evaluate and predict on secret-shared weights and data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_private.chain import PrivateTensor
from keras_private.encrypted import data, inspection, saving, storing
from keras_private.encrypted.backups import Backup
from keras_private.encrypted.compiling import REVEAL, Compiled, compiled
from keras_private.encrypted.cost import Cost
from keras_private.encrypted.encryption import chains_of
from keras_private.encrypted.fitting import Fitting, callback_list
from keras_private.encrypted.fixed_point import FixedPoint
from keras_private.encrypted.limits import Assumptions, check_split, checked_growth
from keras_private.encrypted.lowering import lower
from keras_private.encrypted.parties import EMBEDDED, parties_named
from keras_private.encrypted.ranges import declared_ranges
from keras_private.encrypted.reporting import report_of_model
from keras_private.encrypted.steps import MODEL_OWNER, Steps
from keras_private.encrypted.variables import SharedVariable
from keras_private.errors import ConfigurationError, UnsupportedModelError
from keras_private.report.document import PrivacyReport

DEFAULT_RANGE = (-10.0, 10.0)


class EncryptedModel:
    """A Keras model whose weights, inputs, labels and every number between are shares at three parties.

    | who                       | weights | inputs     | labels     | predictions | loss and metrics          |
    |---------------------------|---------|------------|------------|-------------|---------------------------|
    | each of the three parties | no      | no         | no         | no          | no                        |
    | owner of the model        | yes     | no         | no         | no          | totals named by `reveal`  |
    | owners of data            | no      | their own  | their own  | of theirs   | no                        |
    | two parties that collude  | yes     | yes        | yes        | yes         | yes                       |

    Everyone learns the architecture, shapes, the number of rows and steps, the optimizer and its learning rate.

    Guarantees (Mohassel and Rindal 2018, "ABY3"; parties that follow the protocol, of which no two collude), each
    locked by tests/encrypted:
      * A party receives uniform words only, fresh in every run.
      * Nothing is opened but predictions (to the owner of the inputs), totals per epoch named by `reveal`, one bit per
        epoch that says whether weights are still within their limits, and what `reveal_to` and `parity_check` open.
      * A layer, argument or loss without a rule, and numbers that could leave the ring, are refused before anything is
        shared.

    With parties="embedded", the default, the three run in this process: a simulation that protects from nobody who can
    read its memory. Keras's History, callbacks and progress bar work; there is no eager mode and no `trainable` switch.

    Args:
        model: A built functional or Sequential model. It is not changed; its weights are shared now.
        input_range: (low, high) that inputs must lie in, or a list of such pairs for several inputs. The narrower, the
            larger the models that pass the overflow preflight.
        fixed_point: Encoding; by default 16 bits after the point in the ring of 64 bits.
        parties: Their name (keras_private.encrypted.register_parties).
        weight_growth: How many times their first size the weights may reach in training, in sums over the inputs or
            outputs of a layer; checked after each epoch. By default the most, up to 16, that the ring admits.

    Raises:
        UnsupportedLayerError: A layer or argument has no rule; named.
        OverflowPreflightError: A layer's results could leave the ring; named, with bound and limit.
        PartiesError: No parties of that name are known.
    """

    def __init__(
        self,
        model: tf.keras.Model,
        *,
        input_range: Any = DEFAULT_RANGE,
        fixed_point: FixedPoint | None = None,
        parties: str = EMBEDDED,
        weight_growth: float | None = None,
    ) -> None:
        self.fixed_point = fixed_point or FixedPoint()
        self.program = lower(model)
        self.model = model
        self.parties = parties
        self.input_ranges = declared_ranges(input_range, len(self.program.inputs))
        self.weight_growth = checked_growth(weight_growth)
        self._values = {name: parameter.value for name, parameter in self.program.parameters.items()}
        self.program.check_ranges(self.fixed_point, self.input_ranges, self._values)
        self._limits = Assumptions(self.program, self.fixed_point, self.input_ranges, self._values, self.weight_growth)
        self._trained = False
        self.steps = Steps(self.program, parties_named(parties), self.fixed_point)
        self.share_weights()
        self.input_shapes = [tuple(tensor.shape) for tensor in model.inputs]
        self.optimizer: Any = None
        self.loss: Any = None
        self.reveal: tuple[str, ...] = ()
        self.stop_training = False
        self.history: Any = None
        self._service: Any = None
        self._compiled: Compiled | None = None
        self._train_counter, self._test_counter = (tf.Variable(0, dtype=tf.int64, trainable=False) for _ in range(2))

    def share_weights(self) -> None:
        """The owner shares the Keras model's weights, in place of those shared before."""
        self.steps.set_weights(self._values)

    @property
    def name(self) -> str:
        return str(self.model.name)

    @property
    def metrics(self) -> list[Any]:
        """For Keras's callbacks: no metric keeps state in plaintext."""
        return []

    @property
    def distribute_strategy(self) -> Any:
        """For Keras's TensorBoard callback."""
        return tf.distribute.get_strategy()

    # For the same: steps on shares have a graph of their own, of which TensorBoard would show parties and masks only.
    train_tf_function = None
    _is_graph_network = False

    @property
    def layers(self) -> Any:
        """
        Raises:
            ConfigurationError: Always: histograms of weights, which TensorBoard makes of layers, would open them.
        """
        raise ConfigurationError(
            "the layers of an EncryptedModel hold no weights: they are shares",
            expected="TensorBoard(histogram_freq=0), and layers of reveal_to() or of the Keras model",
            remedy="leave out histograms, or look at model.layers before and at reveal_to().layers after training",
        )

    def compile(
        self, optimizer: Any = "sgd", loss: Any = None, metrics: Any = None, *, reveal: Sequence[str] = REVEAL
    ) -> None:
        """Prepares for fit and evaluate.

        Args:
            optimizer: SGD, with momentum and Nesterov's, or Adam, AMSGrad included (adaptive.py says where it differs
                from Keras's), by name or object; its learning rate may be a schedule.
            loss: "mse", "binary_crossentropy", "categorical_crossentropy" or "sparse_categorical_crossentropy", or
                Keras's objects for them. A model that ends with softmax or sigmoid is trained on what enters them.
            metrics: ["accuracy"], of several sigmoids ["binary_accuracy"], or none. Logits count as positive above 0.
            reveal: What totals are opened after each epoch and evaluation, of "loss" and "metrics". Only what is opened
                is in History, and what is not is not computed.

        Raises:
            ConfigurationError: An argument has no rule on shares.
            UnsupportedModelError: The model is one of make_private, whose noise would be missing.
        """
        if getattr(self.model, "trains_privately", False):
            raise UnsupportedModelError(
                f"{self.name!r} is a model of make_private, and training on shares adds no noise.",
                expected="its private fit in plaintext, or training on shares without differential privacy",
                remedy="Train it by its own fit and predict on shares, or give EncryptedModel the Keras model that "
                "make_private was given.",
            )
        found = compiled(self.program, self.model.output_shape, self._values, optimizer, loss, metrics, reveal)
        self._compiled = found
        self.optimizer, self.loss, self.reveal = found.optimizer, loss, found.reveal
        self.steps.forget("train")
        self.steps.forget("evaluate")

    def fit(
        self,
        x: Any,
        y: Any = None,
        batch_size: int = 32,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        initial_epoch: int = 0,
    ) -> Any:
        """Trains on shares.

        Args:
            x: Array or list of arrays of floats within input_range, shared by "data_owner"; Owned, Vertical or
                Horizontal of several owners; or a tf.data.Dataset of (x, y) batches.
            y: Labels, likewise.
            batch_size: Rows of a step; the last step of an epoch may have fewer.
            epochs: The last epoch's number.
            verbose: As in Keras.
            callbacks: As in Keras. Weights that they see are shares; BackupAndRestore keeps a file for each party.
            validation_split: Share of rows, the last ones, that are evaluated after each epoch.
            validation_data: (x, y) that are evaluated after each epoch.
            shuffle: Whether owners shuffle their rows before each epoch.
            initial_epoch: The first epoch's number.

        Returns:
            Keras's History of what `reveal` names.

        Raises:
            ConfigurationError: The data does not fit, or compile was not called.
            EncodingError: A value is NaN or out of range, before anything is shared; or weights have grown past their
                limits, and those of the epoch before are kept.
            OverflowPreflightError: Some number could leave the ring in training.
        """
        fitting = self._fitting()
        batch_size = _positive(batch_size, "batch_size")
        self.program.check_training()
        rows = self._read(x, y, labelled=True)
        validation = self._validation(validation_data)
        if validation_split:
            if validation is not None or not 0 < validation_split < 1:
                raise ConfigurationError(
                    f"validation_split={validation_split}",
                    expected="between 0 and 1, without validation_data",
                    remedy="give one of the two",
                )
            rows, validation = rows.split(validation_split)
            check_split(rows, validation)
        loss, wants = fitting.compiled.loss, fitting.compiled.wants
        preflight, limits = self._limits.training(loss, min(batch_size, rows.rows), rows, wants)
        if validation is not None:
            self._limits.evaluation(loss, min(batch_size, validation.rows), validation, wants, trained=True)
        verbose = 1 if verbose == "auto" else int(verbose)
        backup = Backup(callbacks, self)
        follow = callback_list(backup.callbacks, self, verbose, epochs, rows.steps(batch_size))
        self.stop_training = False
        initial_epoch = backup.restored(initial_epoch)
        follow.on_train_begin()
        self._trained = True
        logs: dict[str, float] = {}
        for epoch in range(initial_epoch, epochs):
            logs = fitting.epoch(
                epoch, rows, batch_size, shuffle, preflight, limits, follow, lambda: self._train_counter.assign_add(1)
            )
            if validation is not None:
                logs.update({f"val_{name}": value for name, value in fitting.evaluate(validation, batch_size).items()})
            backup.write(epoch)
            follow.on_epoch_end(epoch, logs)
            if self.stop_training:
                break
        follow.on_train_end(logs)
        backup.finished()
        return self.history

    def evaluate(
        self, x: Any, y: Any = None, batch_size: int = 32, verbose: Any = "auto", return_dict: bool = False
    ) -> Any:
        """Loss and metrics that `reveal` names; predictions and labels are not opened.

        Raises:
            ConfigurationError: The data does not fit, nothing is revealed, or compile was not called.
            EncodingError: A value is NaN or out of range.
        """
        fitting = self._fitting()
        if not fitting.compiled.wants:
            raise ConfigurationError(
                "an evaluation of which nothing is opened",
                expected="'loss' or 'metrics' in reveal",
                remedy="compile so",
            )
        rows, size = self._read(x, y, labelled=True), _positive(batch_size, "batch_size")
        found = fitting.compiled
        self._limits.evaluation(found.loss, min(size, rows.rows), rows, found.wants, self._trained)
        logs = fitting.evaluate(rows, size)
        if verbose not in (0, "0"):
            print(" - ".join(f"{name}: {value:.4f}" for name, value in logs.items()))
        if return_dict:
            return logs
        values = list(logs.values())
        return values[0] if len(values) == 1 else values

    def predict(self, x: Any, batch_size: int = 32, verbose: Any = "auto") -> Any:
        """Predictions, opened to the owner of the (first) input alone.

        Returns:
            float64 array, or a list of them for several outputs.

        Raises:
            ConfigurationError: The data does not fit.
            EncodingError: A value is NaN or out of range.
        """
        rows = self._read(x, None, labelled=False)
        follow = callback_list(
            None, self, 0 if verbose in (0, "0") else 1, 1, rows.steps(_positive(batch_size, "batch_size"))
        )
        follow.on_predict_begin()
        found = []
        for step, batch in enumerate(rows.batches(batch_size, shuffle=False)):
            follow.on_predict_batch_begin(step)
            found.append([output.numpy() for output in self.steps.predict(batch)(batch.inputs_as_tensors())])
            follow.on_predict_batch_end(step, {"outputs": found[-1]})
        follow.on_predict_end()
        outputs = [np.concatenate(parts) for parts in zip(*found)]
        return outputs[0] if len(outputs) == 1 else outputs

    def reveal_to(self, owner: str = MODEL_OWNER) -> tf.keras.Model:
        """Opens the weights to the model's owner: a plaintext copy of the Keras model.

        Raises:
            ConfigurationError: Another player asks.
        """
        if owner != MODEL_OWNER:
            raise ConfigurationError(f"weights for {owner!r}", expected=f"{MODEL_OWNER!r}", remedy="ask as the owner")
        copy = tf.keras.models.clone_model(self.model)
        copy.set_weights(self.model.get_weights())
        kept = [name for name, parameter in self.program.parameters.items() if parameter.variable is not None]
        opened = self.steps.get_weights(kept)
        places = {id(variable): place for place, variable in enumerate(self.model.weights)}
        for name in kept:
            copy.weights[places[id(self.program.parameters[name].variable)]].assign(
                tf.cast(opened[name], copy.weights[places[id(self.program.parameters[name].variable)]].dtype)
            )
        return copy

    def get_weights(self) -> list[Any]:
        """All parties' shares of the weights, for set_weights: what EarlyStopping keeps. Useless to one party."""
        return [self.steps.weights[name].shares() for name in self.program.parameters]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Puts back what get_weights returned."""
        self._trained = True
        for name, shares in zip(self.program.parameters, weights):
            self.steps.weights[name].put(shares)

    def save(self, folder: Any, overwrite: bool = True, options: Any = None) -> None:
        """Writes a folder, as a whole or not at all: a file of shares for each party, and one for the owner.

        Raises:
            ShareFileError: The folder exists and is no saved model, or overwrite is False.
        """
        storing.save(self, folder, overwrite)

    save_weights = save

    @staticmethod
    def load(folder: Any, parties: str | None = None) -> EncryptedModel:
        """What save wrote: weights, optimizer, its state; compiled if it was.

        Raises:
            ShareFileError: A file is missing, altered or foreign.
            PartiesError: The parties are not known to this process; give the name of others.
        """
        return storing.load(folder, parties)

    def load_weights(self, folder: Any) -> None:
        """Puts the shares of weights and optimizer state back that save wrote for the same model.

        Raises:
            ShareFileError: A file is missing, altered, or of a model with another architecture, encoding or first
                weights, for which this one's overflow preflight says nothing.
        """
        storing.check_same(self, folder)
        saving.read(folder, self.shared_variables())
        self._trained = True

    def shared_variables(self) -> dict[str, SharedVariable]:
        """Everything that is kept as shares between steps, by name."""
        kept = self._compiled.slots if self._compiled is not None else {}
        slots = {f"{name}/{kind}": slot for name, each in kept.items() for kind, slot in each.items()}
        return {**self.steps.weights, **slots}

    @property
    def private_weights(self) -> dict[str, PrivateTensor]:
        """The weights of now as chains whose pointers lead to the embedded parties, by name; nothing is opened.

        Each party's pair is copied within that party. "model_owner" owns and reads them. The bound of first weights is
        the power of two above them, which training tells the parties too; of trained ones only that they fit the ring.
        """
        return chains_of(self.steps.weights, self.parties, MODEL_OWNER, {} if self._trained else self._values)

    def cost(self, batch_size: int = 32, training: bool = True) -> Cost:
        """Bytes and rounds of one step, counted on its traced graph; print it for a table by layer.

        Raises:
            ConfigurationError: training, and compile was not called.
        """
        return inspection.cost(self, _positive(batch_size, "batch_size"), training)

    def privacy_report(self, batch_size: int = 32) -> PrivacyReport:
        """Who learns what, under which assumptions, and what steps of so many rows cost."""
        return report_of_model(self, batch_size, self._trained, self._compiled is not None)

    def parity_check(self, x: Any, verbose: bool = True) -> dict[str, float]:
        """Largest error of each layer's output against plaintext Keras. Opens every one of them and the weights.

        For finding out whether a model works on shares, with data and weights that need no protection.
        """
        return inspection.parity_check(self, x, verbose)

    def share(self, cluster: Any, **options: Any) -> EncryptedModel:
        """Publishes the weights of now to three parties; `options` are those of kp.serve. Stopped by `stop`.

        The weights are opened to their owner, this process, and shared anew.
        """
        from keras_private.encrypted.serving import serve

        self.stop()
        span = self.input_ranges if len(self.input_ranges) > 1 else self.input_ranges[0]
        self._service = serve(self, cluster, **{"input_range": span, "fixed_point": self.fixed_point, **options})
        return self

    def serve(self, num_requests: int | None = None) -> None:
        """Waits until so many requests are answered, or for `stop` in another thread.

        Raises:
            ConfigurationError: `share` was not called.
            TransportError: A party is gone.
        """
        if self._service is None:
            raise ConfigurationError("nothing is shared", expected="share(cluster) first", remedy="call share")
        self._service.wait(num_requests)

    def stop(self) -> None:
        """Withdraws what `share` published."""
        if self._service is not None:
            self._service.stop()
            self._service = None

    def summary(self, print_fn: Any = print) -> None:
        """Keras's summary, and how the model is computed."""
        self.model.summary(print_fn=print_fn)
        parties = parties_named(self.parties)
        print_fn(f"Shared among {', '.join(parties.servers)}: 64 bits, {self.fixed_point.fraction} after the point.")
        if parties.simulated:
            print_fn(
                "The parties run in this process: a simulation, which protects from nobody who can read its memory."
            )

    @property
    def metric_names(self) -> list[str]:
        return [self._compiled.accuracy] if self._compiled is not None and self._compiled.accuracy else []

    def traced_training(self, batch: data.Batch) -> Any:
        """The function of one training step, as fit would run it with the learning rate of now."""
        fitting = self._fitting()
        self.program.check_training()
        found = fitting.compiled
        preflight, _ = self._limits.training(found.loss, batch.rows, data.Rows([batch]), found.wants)
        return fitting.traced(batch, preflight)[0]

    def read_rows(self, x: Any) -> data.Rows:
        """Inputs as predict takes them, checked."""
        return self._read(x, None, labelled=False)

    def _read(self, x: Any, y: Any, labelled: bool) -> data.Rows:
        rows = data.read(self.program, self.input_shapes, self.input_ranges, x, y)
        if not rows.rows:
            raise ConfigurationError("no rows", expected="at least one", remedy="give data")
        for place, block in enumerate(rows.blocks):
            if not labelled:
                continue
            if block.labels is None:
                raise ConfigurationError("no labels", expected="y", remedy="give labels")
            if self._compiled is not None:
                outputs = tuple(self.model.output_shape)
                rows.blocks[place] = block.with_labels(self._compiled.loss.labels(block.labels, outputs))
        return rows

    def _validation(self, given: Any) -> data.Rows | None:
        if given is None:
            return None
        if isinstance(given, tf.data.Dataset):
            return self._read(given, None, labelled=True)
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            raise ConfigurationError("validation_data", expected="(x, y) or a Dataset", remedy="give a pair")
        return self._read(given[0], given[1], labelled=True)

    def _fitting(self) -> Fitting:
        if self._compiled is None:
            raise ConfigurationError("the model was not compiled", expected="compile(...) first", remedy="call compile")
        # The loss is averaged over the axes between the first and the last as over rows.
        positions = math.prod(self.model.output_shape[1:-1])
        return Fitting(self.steps, self._compiled, positions, self.shared_variables())


def _positive(value: Any, name: str) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"{name}={value!r}", expected="a positive int", remedy=f"correct {name}")
    return int(value)
