"""Trains with Sage in a TensorFlow loop of one's own: `tf.GradientTape` under XLA, no `fit()`.

python examples/custom_loop_tensorflow.py
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"  # before Keras is imported

import keras
import tensorflow as tf
from common.digits import load_digits, make_classifier

from sage_keras import Sage

EPOCHS, BATCH_SIZE = 20, 64


def main():
    train, (pixels, labels) = load_digits()
    # Whole batches: XLA compiles a function for each shape.
    train = tf.data.Dataset.from_tensor_slices(train).shuffle(len(train[1]), seed=0)
    train = train.batch(BATCH_SIZE, drop_remainder=True)
    model = make_classifier()
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = Sage(learning_rate=5e-3)
    optimizer.build(model.trainable_variables)  # XLA lets no variable be made later

    @tf.function(jit_compile=True)
    def train_step(pixels, labels):
        with tf.GradientTape() as tape:
            loss = cross_entropy(labels, model(pixels, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        return loss

    for epoch in range(EPOCHS):
        loss = tf.reduce_mean([train_step(*batch) for batch in train])
        predicted = tf.argmax(model(pixels, training=False), axis=-1, output_type="int32")
        accuracy = tf.reduce_mean(tf.cast(predicted == labels, "float32"))
        print(f"epoch {epoch + 1}: loss {loss:.4f}, validation accuracy {accuracy:.4f}")

    for variable in optimizer.guided_variables:
        sensitivity = tf.reduce_mean(optimizer.sensitivity(variable))
        print(f"{variable.path}: mean sensitivity {sensitivity:.2e}")


if __name__ == "__main__":
    main()
