"""Trains with Sage in a PyTorch loop of one's own: `loss.backward()`, no `fit()`.

python examples/custom_loop_torch.py
"""

import os

os.environ["KERAS_BACKEND"] = "torch"  # before Keras is imported

import torch
from common.digits import load_digits, make_classifier

from sage_keras import Sage

EPOCHS, BATCH_SIZE = 20, 64


def main():
    train, validation = (map(torch.from_numpy, arrays) for arrays in load_digits())
    train = torch.utils.data.TensorDataset(*train)
    pixels, labels = validation
    model = make_classifier()
    optimizer = Sage(learning_rate=5e-3)

    for epoch in range(EPOCHS):
        total = 0.0
        for images, digits in torch.utils.data.DataLoader(train, BATCH_SIZE, shuffle=True):
            logits = model(images, training=True)
            loss = torch.nn.functional.cross_entropy(logits, digits.long())
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                gradients = [weight.value.grad for weight in model.trainable_weights]
                optimizer.apply(gradients, model.trainable_weights)
            total += loss.item() * len(digits)
        with torch.no_grad():
            predicted = model(pixels, training=False).argmax(dim=-1)
        loss, accuracy = total / len(train), (predicted == labels).float().mean()
        print(f"epoch {epoch + 1}: loss {loss:.4f}, validation accuracy {accuracy:.4f}")

    for variable in optimizer.guided_variables:
        print(f"{variable.path}: mean sensitivity {optimizer.sensitivity(variable).mean():.2e}")


if __name__ == "__main__":
    main()
