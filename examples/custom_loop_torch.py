"""Trains with Sage in a PyTorch loop of one's own: `loss.backward()`, no `fit()`.

python examples/custom_loop_torch.py
"""

import os

os.environ["KERAS_BACKEND"] = "torch"  # before Keras is imported

import keras
import torch
from common.digits import load_digits

from sage_keras import Sage

EPOCHS, BATCH_SIZE = 20, 64


def main():
    train, validation = (map(torch.from_numpy, arrays) for arrays in load_digits())
    train = torch.utils.data.TensorDataset(*train)
    pixels, labels = validation
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dropout(0.1),
            keras.layers.Dense(10),
        ]
    )
    optimizer = Sage(learning_rate=5e-3)

    for epoch in range(EPOCHS):
        total = 0.0
        for batch_pixels, batch_labels in torch.utils.data.DataLoader(
            train, BATCH_SIZE, shuffle=True
        ):
            logits = model(batch_pixels, training=True)
            loss = torch.nn.functional.cross_entropy(logits, batch_labels.long())
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                gradients = [weight.value.grad for weight in model.trainable_weights]
                optimizer.apply(gradients, model.trainable_weights)
            total += loss.item() * len(batch_labels)
        with torch.no_grad():
            predicted = model(pixels, training=False).argmax(dim=-1)
        accuracy = (predicted == labels).float().mean().item()
        print(
            f"epoch {epoch + 1}: loss {total / len(train):.4f}, validation accuracy {accuracy:.4f}"
        )

    for variable in optimizer.guided_variables:
        print(f"{variable.path}: mean sensitivity {optimizer.sensitivity(variable).mean():.2e}")


if __name__ == "__main__":
    main()
