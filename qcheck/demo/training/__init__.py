"""How the demo pipeline was made: pictures -> autoencoder -> denoiser -> style adapters.

``python -m qcheck.demo.training --help`` lists the stages. Nothing else in qcheck imports this package.
"""
