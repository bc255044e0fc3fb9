"""Three more pipelines for the zoo, of other kinds than the demo's, with adapters of known training.

``python -m tools.train_zoo --help`` lists the stages. It is no part of the package qcheck.

- ``velocity``: a UNet of Stable Diffusion's kind with output v and zero terminal SNR, on EmojiOne's pictures;
- ``pair``: a UNet of Stable Diffusion XL's kind, two text encoders and added conditions, on drawn patterns; with
  ``pair-few``, its variant of four steps without guidance;
- ``flow``: a transformer of Stable Diffusion 3's kind, trained by flow matching, on drawn scenes.

All take the autoencoder of the demo.
"""
