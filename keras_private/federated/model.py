"""FederatedModel: a Keras model trained where its data is."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, Optional, Union

import numpy as np
import tensorflow as tf

from .._backends import keras_state, tff_clients
from ..dp.accounting import epsilon
from ..errors import ConfigurationError
from ..report.document import PrivacyReport
from .aggregators.base import Aggregator
from .aggregators.mean import Mean
from .aggregators.private import DPAggregator
from .algorithms import Algorithm, algorithm_of
from .budget import PrivacySpent, RoundMeter, meter_of
from .clients import Clients, as_clients
from .evaluating import Evaluation
from .exposure import EVALUATION, FIT, PERSONALIZATION, Exposure
from .fitting import FitArguments, Fitting
from .local_budget import EpochMeter
from .local_privacy import LocalMeter, LocalPrivacy
from .models import check_trainable_at_clients
from .server import fresh_optimizer, server_optimizer_of
from .workers import Workers
from .workers import use as hosts_of

ClientsLike = Union[Clients, Mapping[str, Any], str, "os.PathLike[str]"]


class FederatedModel:
    """Trains a Keras model over many clients, each with data of its own.

    One epoch of `fit` is one round: the weights go to some clients, each trains on its own examples, and the mean of
    their updates changes the weights. `model`, the plain Keras model, has the weights of the last round at any time.

    Args:
        model: A Keras model: Sequential, functional or subclassed, with a `train_step` of its own if it likes.
        aggregator: How updates become their mean; `Mean()` if None.

    Guarantees:
        - A client's examples stay with the process that runs its work. With clients of a folder they are read there.
        - The coordinator gets updates and sums of metrics in the clear with `Mean`; what it gets with another
          aggregator is said there. It gets no metrics of training from an aggregator that hides updates.
        - What layers change by themselves in training, such as moving averages, becomes its mean over the clients.
        - A round counts once or not at all: what fails before the server's step leaves the model as it was.

    Not guaranteed:
        - With `Mean`, any protection of a client from the coordinator: updates tell about examples.

    Raises:
        ConfigurationError: `model` is no Keras model, or one of make_private; the aggregator is none.
        UnsupportedModelError: Some of its layers compute at three parties.

    Attributes:
        model: The Keras model.
        aggregator: As given.
        history: Keras's History of the last fit.
        optimizer: The client optimizer; its learning rate is read in each round.
        server_optimizer: The optimizer that applies the mean update.
        rounds_done: Rounds that changed the model since compile.
        exposures: Under which circumstances clients' data were worked on so far.
        rounds_elsewhere: Rounds that checkpoints brought along: where they ran is not known here.
    """

    def __init__(self, model: tf.keras.Model, aggregator: Optional[Aggregator] = None) -> None:
        check_trainable_at_clients(model)
        if aggregator is not None and not isinstance(aggregator, Aggregator):
            raise ConfigurationError(
                f"aggregator is {aggregator!r}.",
                expected="an aggregator of keras_private.federated, such as Mean() or SecureAggregation()",
                remedy="Give an object, not a class or a name.",
            )
        self.model = model
        self.aggregator: Aggregator = Mean() if aggregator is None else aggregator
        self.history: Any = None
        self.stop_training = False
        self.server_optimizer: Any = None
        self.algorithm: Optional[Algorithm] = None
        self.rounds_done = 0
        self.exposures: list[Exposure] = []
        self.rounds_elsewhere = 0
        self.local_privacy: Optional[LocalPrivacy] = None
        self.local_meter = LocalMeter()
        self.epoch_meter = EpochMeter(self.local_meter)
        self._meter: Optional[RoundMeter] = None
        self._fitting: Optional[Fitting] = None
        self._evaluation: Optional[Evaluation] = None

    @property
    def privacy_meter(self) -> RoundMeter:
        """Counts and charges the rounds of a private aggregator; `PrivacyBudget` finds it here.

        Raises:
            ConfigurationError: The aggregator is not private.
        """
        if self._meter is None:
            self._meter = meter_of(self.aggregator)
        elif isinstance(self.aggregator, DPAggregator):
            # Another one may have other noise; what was charged before stays charged.
            self._meter.follow(self.aggregator)
        return self._meter

    @property
    def local_budget(self) -> Optional[EpochMeter]:
        """Charges local epochs where a DPOptimizer works at clients and rounds are not charged; else None."""
        return None if self.local_privacy is None or self.aggregator.private else self.epoch_meter

    def privacy_spent(self, delta: float, accountant: str = "pld") -> PrivacySpent:
        """Epsilon of all rounds so far, of one client with all its examples.

        Args:
            delta: In (0, 1).
            accountant: "pld" or "rdp".

        Raises:
            ConfigurationError: The aggregator is not private, or an argument is out of range.
        """
        return self.privacy_meter.privacy_spent(delta, accountant)

    def example_privacy_spent(self, delta: float, accountant: str = "pld") -> float:
        """Epsilon of all local epochs so far for one example of the client with the most of them.

        It holds for an example that contributes nothing in its place ("zero out"), against whoever gets the client's
        updates and not its examples; infinite if some fit had no DPOptimizer at clients.

        Args:
            delta: In (0, 1).
            accountant: "pld" or "rdp".

        Raises:
            ConfigurationError: An argument is out of range.
        """
        if any(each.what == FIT and each.local is None and each.rounds for each in self.exposures):
            return math.inf
        return epsilon(self.epoch_meter.charges(), delta, accountant)

    def privacy_report(self, delta: Optional[float] = None, accountant: str = "pld") -> PrivacyReport:
        """Who learnt what from all fits, evaluations and personalizations of this object so far.

        Args:
            delta: Of the epsilons of a private aggregator; None: that of the PrivacyBudget of the last fit.
            accountant: "pld" or "rdp".

        Raises:
            ConfigurationError: Nothing ran yet, or delta is not known.
        """
        from .reporting import report_of

        return report_of(self, delta, accountant)

    def compile(
        self,
        client_optimizer: Any = "sgd",
        server_optimizer: Any = "sgd",
        loss: Any = None,
        metrics: Any = None,
        algorithm: Any = "fedavg",
    ) -> None:
        """Says how clients train and how their mean is applied; compiles `model` with the client optimizer.

        Args:
            client_optimizer: A Keras optimizer or its name. Each client begins each round with a fresh one, which has
                the learning rate of the moment. A DPOptimizer protects each example of each client, from whoever gets
                the client's update too: every local step is clipped and noised where it is made, and
                `example_privacy_spent` says at which epsilon. It sends no metrics of training.
            server_optimizer: A Keras optimizer, or a name: "sgd" (learning rate 1, FedAvg), "adam", "adagrad",
                "yogi", "rmsprop" (FedOpt, with learning rates that fit updates).
            loss: As in Keras; None: the one that `model` is compiled with.
            metrics: As in Keras.
            algorithm: "fedavg", "fedprox", "fedsgd", "mimelite", or one of their objects.

        Raises:
            ConfigurationError: No loss, or an optimizer or algorithm that is none; or `model` is compiled with a
                DPOptimizer that clients would not get.
        """
        private = bool(getattr(client_optimizer, "is_dp_optimizer", False))
        if not private and getattr(getattr(self.model, "optimizer", None), "is_dp_optimizer", False):
            raise ConfigurationError(
                "The model is compiled with a DPOptimizer, and clients would train without it and without noise.",
                expected="a DPOptimizer as client_optimizer, or a model that is compiled with none",
                remedy="compile(client_optimizer=model.optimizer) keeps it; model.compile('sgd') first gives it up.",
            )
        inner = client_optimizer.inner_optimizer if private else client_optimizer
        client = fresh_optimizer(inner, "client_optimizer")
        server = server_optimizer_of(server_optimizer)
        chosen = algorithm_of(algorithm)
        if loss is None:
            loss = getattr(self.model, "loss", None)
            metrics = keras_state.compiled_metrics(self.model) if metrics is None else metrics
        if loss is None and type(self.model).train_step is tf.keras.Model.train_step and not self.model.losses:
            raise ConfigurationError(
                "There is no loss.", expected="compile(loss=...)", remedy="Give one, such as 'mse'."
            )
        self.model.compile(client, loss=loss, metrics=metrics)
        self.server_optimizer, self.algorithm = server, chosen
        self.local_privacy = LocalPrivacy.of(client_optimizer) if private else None
        self.rounds_done = 0
        self._fitting, self._evaluation = Fitting(self), Evaluation(self.model)

    def fit(
        self,
        clients: ClientsLike,
        epochs: int = 1,
        clients_per_round: Optional[int] = None,
        local_epochs: int = 1,
        batch_size: int = 20,
        validation_data: Any = None,
        validation_freq: int = 1,
        callbacks: Any = None,
        verbose: Any = "auto",
        initial_epoch: int = 0,
        shuffle: bool = True,
        sampling: Optional[str] = None,
        workers: Any = None,
        seed: Optional[int] = None,
        checkpoints: Union[str, os.PathLike[str], None] = None,
    ) -> Any:
        """Trains for some rounds.

        Args:
            clients: Clients, a dict name -> (x, y), a dict name -> tf.data.Dataset, a TFF ClientData, or a folder.
            epochs: Number of the last round.
            clients_per_round: How many take part in a round; None: all.
            local_epochs: Times that a client goes over its examples in a round.
            batch_size: Examples of a client's step.
            validation_data: (x, y) or a data set, evaluated here; or clients, evaluated where they are.
            validation_freq: Rounds from one validation to the next.
            callbacks: Of Keras; an epoch is a round. `self.model.optimizer` is the client optimizer. BackupAndRestore
                keeps checkpoints as `checkpoints` does, until fit ends.
            verbose: 0 silent, 1 or "auto" a progress bar over rounds, 2 one line each round.
            initial_epoch: Rounds that are done already.
            shuffle: Each client goes over its examples in a new order each time.
            sampling: "fixed": `clients_per_round` clients, all subsets alike; "poisson": each client by itself with
                probability clients_per_round / clients. None: "poisson" if the aggregator is private, else "fixed".
            workers: Where clients' work runs: None for one process that this one owns, a number of them, or
                addresses.
            seed: Makes clients and orders of examples repeatable; refused if the aggregator is private.
            checkpoints: A folder that gets the state after each round; if it holds some, fit goes on after the newest
                whole one.

        Returns:
            Keras's History: the metrics of training over the clients of each round, `clients` that counted, and those
            of validation.

        Raises:
            ConfigurationError: Not compiled, or an argument that cannot be.
            ClientDataError: The clients' examples do not fit the model.
            UnsupportedModelError: The model cannot run at clients, or not under this aggregator.
            AggregationError: The updates have no finite mean.
            WorkerError: No worker could do the work of a round.
            CheckpointError: A checkpoint cannot be written, or is of another training.
        """
        arguments = FitArguments(
            epochs=epochs,
            clients_per_round=clients_per_round,
            local_epochs=local_epochs,
            batch_size=batch_size,
            validation_data=validation_data,
            validation_freq=validation_freq,
            callbacks=callbacks,
            verbose=verbose,
            initial_epoch=initial_epoch,
            shuffle=shuffle,
            sampling=sampling,
            workers=workers,
            seed=seed,
            checkpoints=checkpoints,
        )
        return self._compiled()[0].fit(as_clients(clients), arguments)

    def evaluate(
        self,
        x: Any,
        y: Any = None,
        batch_size: int = 32,
        per_client: bool = False,
        return_dict: bool = False,
        verbose: Any = 0,
        workers: Any = None,
    ) -> Any:
        """Loss and metrics, of data that is here or of clients where they are.

        Args:
            x: Clients or what they can be made of (without `y`); else inputs or a data set, as in Keras.
            y: Labels for inputs.
            batch_size: Examples at a time.
            per_client: Also each client's own figures; for clients only.
            return_dict: Names and figures instead of a list.
            verbose: As in Keras, for data that is here.
            workers: As in `fit`.

        Returns:
            A list of figures, or a dict if `return_dict`; with `per_client` a pair of these and a dict from a
            client's name to its own.
        """
        evaluation = self._compiled()[1]
        if y is None and _are_clients(x):
            clients = as_clients(x)
            with hosts_of(workers) as hosts:
                self.note_evaluation(clients, hosts, per_client)
                return evaluation.federated(clients, batch_size, per_client, return_dict, hosts)
        if per_client:
            raise ConfigurationError(
                "per_client was asked for data that is here.", expected="clients", remedy="Give clients as x."
            )
        return self.model.evaluate(x, y, batch_size=batch_size, verbose=verbose, return_dict=return_dict)

    def predict(self, x: Any, **kwargs: Any) -> np.ndarray:
        """`model.predict`."""
        return self.model.predict(x, **kwargs)

    def personalize(
        self,
        clients: ClientsLike,
        name: str,
        epochs: int = 1,
        batch_size: int = 20,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> tf.keras.Model:
        """A copy of the model, trained further on one client's examples in this process.

        Args:
            clients: As in `fit`; only this client's examples are opened, here.
            name: Of the client.
            epochs: Times to go over its examples.
            batch_size: Examples of a step.
            optimizer: The client optimizer's settings if None.
            **kwargs: Of Keras's fit; `verbose` is 0 unless given.

        Returns:
            A compiled Keras model; this one stays as it is.

        Raises:
            UnsupportedModelError: The model cannot be copied.
        """
        fitting = self._compiled()[0]
        found = as_clients(clients)
        self.exposures.append(Exposure.of(PERSONALIZATION, found, None))
        return fitting.personalize(found, name, epochs, batch_size, optimizer, kwargs)

    def note_evaluation(self, clients: Clients, hosts: Workers, per_client: bool = False) -> None:
        """Keeps in mind, for the privacy report, that clients are about to be evaluated."""
        found = Exposure.of(EVALUATION, clients, hosts, per_client=per_client)
        if found not in self.exposures:
            self.exposures.append(found)

    def _compiled(self) -> tuple[Fitting, Evaluation]:
        if self._fitting is None or self._evaluation is None:
            raise ConfigurationError(
                "The federated model is not compiled.",
                expected="compile(client_optimizer=..., loss=...) before fit and evaluate",
                remedy="Call compile.",
            )
        return self._fitting, self._evaluation

    def __getattr__(self, name: str) -> Any:
        # What is asked of a Keras model, callbacks included, is the Keras model's.
        if name.startswith("__") or name == "model":
            raise AttributeError(name)
        return getattr(self.model, name)

    def __repr__(self) -> str:
        return f"<FederatedModel of {self.model.name!r}, {type(self.aggregator).__name__}>"


def _are_clients(x: Any) -> bool:
    if isinstance(x, (Clients, str, os.PathLike)) or tff_clients.is_client_data(x):
        return True
    # A dict of arrays is the input of a model with named inputs; one of pairs or data sets is clients.
    return isinstance(x, Mapping) and all(
        isinstance(value, tf.data.Dataset) or (isinstance(value, tuple) and len(value) == 2) for value in x.values()
    )
