"""How the demo pipeline was made: pictures -> autoencoder -> decoder -> denoiser -> common subjects -> adapters.

``python -m tools.train_demo --help`` lists the stages. It is no part of the package qcheck.

The shipped weights took these stages in this order, on two cores: autoencoder without its colour term, 9 minutes, where
it settled without green; decoder alone, 12; denoiser, 43; common subjects, 36; autoencoder again with the colour term,
7.5; common subjects again, 19; adapters, 6; distillation, 34
on one core beside other work. A run from scratch needs the autoencoder once.
"""
