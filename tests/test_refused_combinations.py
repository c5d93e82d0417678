"""Combinations of the pillars that make no sense: each is refused by a typed error that gives the reason."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import keras_private as kp
from keras_private.errors import ConfigurationError, PrivacyError, UnsupportedLayerError, UnsupportedModelError
from keras_private.federated import DPAggregator, Mean, Median, Trimmed, Zeroing
from tests.federated.test_model import LOSS, dense, examples

CLIENTS = {name: examples(8, seed) for seed, name in enumerate("abc")}
X, Y = examples(24)
DELTA = 1e-3


def dp_optimizer():
    return kp.DPOptimizer("sgd", 1.0, 1.0, expected_batch_size=4)


def private():
    return kp.make_private(dense(), epsilon=5.0, delta=DELTA)


def on_parties():
    tf.keras.utils.set_random_seed(0)
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [tf.keras.Input((6,)), kp.layers.EncryptedDense(5, activation="relu"), layers.Dense(3, "softmax")]
    )


def encrypted():
    return kp.EncryptedModel(dense())


def fed(model=None, aggregator=None):
    return kp.FederatedModel(dense() if model is None else model, aggregator)


def federated_fit(aggregator=None, optimizer="sgd", budget=None, clients=CLIENTS, **arguments):
    found = fed(aggregator=aggregator)
    found.compile(optimizer, loss=LOSS)
    budget = kp.PrivacyBudget(50.0, DELTA) if budget is None else budget
    return found.fit(clients, batch_size=4, verbose=0, callbacks=[budget], **arguments)


def sampled_budget():
    return kp.PrivacyBudget(50.0, DELTA, data=kp.PoissonSampler(X, Y, batch_size=4))


def private_fit(*data, **arguments):
    model = private()
    model.compile("sgd", LOSS)
    return model.fit(*data, verbose=0, **arguments)


def encrypted_fit(*data, **arguments):
    model = encrypted()
    model.compile("sgd", LOSS)
    return model.fit(*data, verbose=0, **arguments)


def keras_fit_with_a_budget():
    model = dense()
    model.compile("sgd", LOSS)
    return model.fit(X, Y, verbose=0, callbacks=[kp.PrivacyBudget(50.0, DELTA)])


def compiled_with_noise_and_federated_without():
    model = dense()
    model.compile(dp_optimizer(), LOSS)
    return kp.FederatedModel(model).compile("sgd")


def encrypted_and_privately_made():
    model = kp.EncryptedModel(private())
    return model.compile("sgd", LOSS)


AGGREGATORS = {
    "a robust one in SecureAggregation": (lambda: kp.SecureAggregation(Median()), "opens a sum and nothing else"),
    "a private one in SecureAggregation": (lambda: kp.SecureAggregation(DPAggregator()), "opens a sum"),
    "SecureAggregation in itself": (lambda: kp.SecureAggregation(kp.SecureAggregation()), "opens a sum"),
    "an aggregator as parties": (lambda: kp.SecureAggregation(parties=Mean(), keys="keys"), "party 0 and party 1"),
    "a robust one in DPAggregator": (lambda: DPAggregator(Trimmed()), "no sum that noise could be added to"),
    "one inside a bound in DPAggregator": (
        lambda: DPAggregator(Zeroing(Median(), l2_norm_bound=1.0)),
        "no sum that noise could be added to",
    ),
    "a quantile in DPAggregator": (lambda: DPAggregator(Zeroing()), "no sum that noise could be added to"),
    "DPAggregator in DPAggregator": (lambda: DPAggregator(DPAggregator()), "adds noise already"),
    "a class in DPAggregator": (lambda: DPAggregator(kp.SecureAggregation), "no aggregator"),
    "DPAggregator in Zeroing": (lambda: Zeroing(DPAggregator(), l2_norm_bound=1.0), "outermost"),
    "a quantile around masked sums": (lambda: Zeroing(kp.SecureAggregation()), "reads every update"),
    "a class as aggregator": (lambda: fed(aggregator=kp.SecureAggregation), "an object, not a class"),
    "an optimizer as aggregator": (lambda: fed(aggregator=dp_optimizer()), "an aggregator"),
}
MODELS = {
    "make_private in FederatedModel": (lambda: fed(private()), "draws its own batches"),
    "EncryptedModel in FederatedModel": (lambda: fed(encrypted()), r"is a EncryptedModel.*Give its `\.model`"),
    "FederatedModel in FederatedModel": (lambda: fed(fed()), r"is a FederatedModel.*Give its `\.model`"),
    "FederatedModel in make_private": (lambda: kp.make_private(fed(), 5.0, DELTA), r"Give its `\.model`"),
    "EncryptedModel in make_private": (lambda: kp.make_private(encrypted(), 5.0, DELTA), r"Give its `\.model`"),
    "FederatedModel in EncryptedModel": (lambda: kp.EncryptedModel(fed()), r"is a FederatedModel.*give its \.model"),
    "EncryptedModel in EncryptedModel": (lambda: kp.EncryptedModel(encrypted()), r"is a EncryptedModel"),
    "FederatedModel in validate": (lambda: kp.validate(fed(), X, Y), r"Give its `\.model`"),
    "FederatedModel in fix": (lambda: kp.fix(fed()), r"Give its `\.model`"),
    "a class in make_private": (lambda: kp.make_private(tf.keras.Model, 5.0, DELTA), "Build one with Keras"),
}
STEPS = {
    "make_private twice": (lambda: kp.make_private(private(), 5.0, DELTA), "its own train_step"),
    "layers on parties in FederatedModel": (lambda: fed(on_parties()), "compute at three parties"),
    "layers on parties in make_private": (lambda: kp.make_private(on_parties(), 5.0, DELTA), "compute at three"),
    "training of a private model on shares": (encrypted_and_privately_made, "adds no noise"),
}
TRAINING = {
    "DPOptimizer at the server": (lambda: fed().compile("sgd", dp_optimizer(), loss=LOSS), "is a DPOptimizer"),
    "DPOptimizer in DPOptimizer": (lambda: kp.DPOptimizer(dp_optimizer()), "is a DPOptimizer already"),
    "DPOptimizer on shares": (lambda: encrypted().compile(dp_optimizer(), LOSS), "no rule on shares"),
    "DPOptimizer that a federation would drop": (compiled_with_noise_and_federated_without, "without noise"),
    "a budget of rounds without noise": (federated_fit, "not differentially private"),
    "a budget of masked rounds without noise": (
        lambda: federated_fit(kp.SecureAggregation()),
        "not differentially private",
    ),
    "a budget of rounds with a sampler": (lambda: federated_fit(DPAggregator(), budget=sampled_budget()), "sampler"),
    "a budget of local epochs with a sampler": (
        lambda: federated_fit(optimizer=dp_optimizer(), budget=sampled_budget()),
        "sampler",
    ),
    "a seed of private rounds": (lambda: federated_fit(DPAggregator(), seed=1), "A seed was given"),
    "a sampler as clients": (
        lambda: federated_fit(clients=kp.PoissonSampler(X, Y, batch_size=4)),
        "is no description of clients",
    ),
    "a budget in a plain fit": (keras_fit_with_a_budget, "a keras_private.DPOptimizer"),
    "a budget in a private fit": (
        lambda: private_fit(X, Y, callbacks=[kp.PrivacyBudget(5.0, DELTA)]),
        "which has its own",
    ),
    "a budget on shares": (
        lambda: encrypted_fit(X, Y, callbacks=[kp.PrivacyBudget(5.0, DELTA)]),
        "EncryptedModel adds no noise",
    ),
    "clients in a private fit": (
        lambda: private_fit(kp.federated.partition.iid(X, Y, clients=4, seed=1)),
        "does not say how it samples",
    ),
    "a sampler on shares": (lambda: encrypted_fit(kp.PoissonSampler(X, Y, batch_size=4)), "no rows to share"),
    "clients on shares": (lambda: encrypted_fit(CLIENTS), "no rows to share"),
}
SERVING = {
    "a model for parties of another kind": (lambda: kp.serve(dense(), (1, 2)), "is a tuple.*a Cluster"),
    "a client of a model": (lambda: kp.Client(fed()), "is a FederatedModel.*a Cluster"),
}


def cases(found):
    return pytest.mark.parametrize(("combine", "reason"), list(found.values()), ids=list(found))


@cases({**AGGREGATORS, **MODELS, **TRAINING, **SERVING})
def test_it_is_refused_as_a_wrong_argument(combine, reason):
    with pytest.raises(PrivacyError, match=f"(?s){reason}") as refused:
        combine()
    assert isinstance(refused.value, (ConfigurationError, ValueError))
    assert refused.value.expected and refused.value.remedy


@cases(STEPS)
def test_it_is_refused_as_a_model_that_cannot_be(combine, reason):
    with pytest.raises(UnsupportedModelError, match=reason) as refused:
        combine()
    assert refused.value.remedy


def test_a_round_that_was_refused_changed_and_charged_nothing():
    model, budget = dense(), kp.PrivacyBudget(50.0, DELTA)
    before = model.get_weights()
    found = kp.FederatedModel(model, kp.SecureAggregation())
    found.compile("sgd", loss=LOSS)
    with pytest.raises(ConfigurationError):
        found.fit(CLIENTS, batch_size=4, verbose=0, callbacks=[budget])
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights()))
    assert budget.epsilon_spent == 0.0


def test_the_remedies_work():
    kp.FederatedModel(encrypted().model)
    kp.make_private(fed().model, 5.0, DELTA)
    kp.EncryptedModel(fed().model)
    DPAggregator(Zeroing(kp.SecureAggregation(), l2_norm_bound=2.0))
    model = dense()
    model.compile(dp_optimizer(), LOSS)
    kept = kp.FederatedModel(model)
    kept.compile(client_optimizer=model.optimizer)
    assert kept.local_privacy is not None and kept.model.loss == LOSS
    # A privately made model may predict on shares: only training there would lack the noise.
    made = private()
    made.compile("sgd", LOSS)
    made.fit(X, Y, batch_size=8, verbose=0)
    answers = kp.EncryptedModel(made).predict(X[:4], verbose=0)
    np.testing.assert_allclose(answers, made.predict(X[:4], verbose=0), atol=2e-3)


def test_layers_on_parties_have_no_rule_on_shares():
    with pytest.raises(UnsupportedLayerError, match="EncryptedDense"):
        kp.EncryptedModel(on_parties())
