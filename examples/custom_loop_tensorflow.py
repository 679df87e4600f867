"""Trains with Sage in a TensorFlow loop of one's own: `tf.GradientTape` under XLA, no `fit()`."""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"  # before Keras is imported

import keras
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sage_keras import Sage

EPOCHS, BATCH_SIZE = 20, 64


def main():
    digits = train_test_split(*load_digits(return_X_y=True), train_size=1408, random_state=0)
    train_images, images, train_labels, labels = digits
    train = tf.data.Dataset.from_tensor_slices((train_images / 16, train_labels))  # from 0 to 1
    # Whole batches: XLA compiles a function for each shape.
    train = train.shuffle(len(train_labels), seed=0).batch(BATCH_SIZE, drop_remainder=True)

    keras.utils.set_random_seed(0)
    dense, dropout = keras.layers.Dense, keras.layers.Dropout
    model = keras.Sequential([keras.Input((64,)), dense(64, "relu"), dropout(0.1), dense(10)])
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = Sage(learning_rate=5e-3)
    optimizer.build(model.trainable_variables)  # XLA lets no variable be made later

    @tf.function(jit_compile=True)
    def train_step(images, labels):
        with tf.GradientTape() as tape:
            loss = cross_entropy(labels, model(images, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        return loss

    for epoch in range(EPOCHS):
        loss = tf.reduce_mean([train_step(*batch) for batch in train])
        predicted = tf.argmax(model(images / 16, training=False), axis=-1)
        accuracy = tf.reduce_mean(tf.cast(predicted == labels, "float32"))
        print(f"epoch {epoch + 1}: loss {loss:.4f}, validation accuracy {accuracy:.4f}")

    for variable in optimizer.guided_variables:
        sensitivity = tf.reduce_mean(optimizer.sensitivity(variable))
        print(f"{variable.path}: mean sensitivity {sensitivity:.2e}")


if __name__ == "__main__":
    main()
