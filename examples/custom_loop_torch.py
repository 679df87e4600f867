"""Trains with Sage in a PyTorch loop of one's own: `loss.backward()`, no `fit()`."""

import os

os.environ["KERAS_BACKEND"] = "torch"  # before Keras is imported

import keras
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sage_keras import Sage

EPOCHS, BATCH_SIZE = 20, 64


def main():
    digits = train_test_split(*load_digits(return_X_y=True), train_size=1408, random_state=0)
    train_images, images, train_labels, labels = map(torch.from_numpy, digits)
    train = torch.utils.data.TensorDataset(train_images.float() / 16, train_labels)  # from 0 to 1

    keras.utils.set_random_seed(0)
    dense, dropout = keras.layers.Dense, keras.layers.Dropout
    model = keras.Sequential([keras.Input((64,)), dense(64, "relu"), dropout(0.1), dense(10)])
    optimizer = Sage(learning_rate=5e-3)

    for epoch in range(EPOCHS):
        total = 0.0
        for batch, targets in torch.utils.data.DataLoader(train, BATCH_SIZE, shuffle=True):
            loss = torch.nn.functional.cross_entropy(model(batch, training=True), targets)
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                gradients = [weight.value.grad for weight in model.trainable_weights]
                optimizer.apply(gradients, model.trainable_weights)
            total += loss.item() * len(targets)
        with torch.no_grad():
            predicted = model(images.float() / 16, training=False).argmax(dim=-1)
        loss, accuracy = total / len(train), (predicted == labels).float().mean()
        print(f"epoch {epoch + 1}: loss {loss:.4f}, validation accuracy {accuracy:.4f}")

    for variable in optimizer.guided_variables:
        print(f"{variable.path}: mean sensitivity {optimizer.sensitivity(variable).mean():.2e}")


if __name__ == "__main__":
    main()
