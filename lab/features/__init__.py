"""What are a model's activations made of? Autoencoders, PCA and NMF on them, and the model's own neurons beside.

A standard sparse autoencoder and one that composes the features of a sample by attention learn a checkpoint's residual
or the neurons of a head, and three samples of which the features are known: sums, logic, a small grammar. Measured are
explained variance, bits per byte with the reconstruction put back in the model, active, dead and reused features,
whether known features are recovered, and whether features are more about one thing than the model's own neurons.
What was heard, trained or measured is not done again: the same command goes on where it was stopped.
"""

from .command import main

__all__ = ["main"]
