"""Trains with Sage in a JAX loop of one's own: pure functions, one `jax.jit`, no `fit()`."""

import functools
import os

os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported

import jax
import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sage_keras import Sage

EPOCHS, BATCH_SIZE = 20, 64


def main():
    digits = train_test_split(*load_digits(return_X_y=True), train_size=1408, random_state=0)
    train_images, images, train_labels, labels = digits
    train_images, images = train_images / 16, images / 16  # from 0 to 1

    keras.utils.set_random_seed(0)
    dense, dropout = keras.layers.Dense, keras.layers.Dropout
    model = keras.Sequential([keras.Input((64,)), dense(64, "relu"), dropout(0.1), dense(10)])
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = Sage(learning_rate=5e-3)
    optimizer.build(model.trainable_variables)

    def compute_loss(trainable, other, images, labels):
        logits, other = model.stateless_call(trainable, other, images, training=True)
        return cross_entropy(labels, logits), other

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state, images, labels):
        trainable, other, slots = state
        compute_gradients = jax.value_and_grad(compute_loss, has_aux=True)
        (loss, other), gradients = compute_gradients(trainable, other, images, labels)
        trainable, slots = optimizer.stateless_apply(slots, gradients, trainable)
        return (trainable, other, slots), loss

    variables = model.trainable_variables, model.non_trainable_variables, optimizer.variables
    state = jax.tree.map(lambda variable: variable.value, variables)
    generator = np.random.default_rng(0)
    for epoch in range(EPOCHS):
        losses = []
        for batch in generator.permutation(len(train_images)).reshape(-1, BATCH_SIZE):
            state, loss = train_step(state, train_images[batch], train_labels[batch])
            losses.append(loss)
        logits, _ = model.stateless_call(*state[:2], images, training=False)
        accuracy = np.mean(logits.argmax(axis=-1) == labels)
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.4f}, validation accuracy {accuracy:.4f}")

    # The trained values go back into the model and the optimizer, to be saved or looked at.
    jax.tree.map(lambda variable, value: variable.assign(value), variables, state)
    for variable in optimizer.guided_variables:
        print(f"{variable.path}: mean sensitivity {optimizer.sensitivity(variable).mean():.2e}")


if __name__ == "__main__":
    main()
