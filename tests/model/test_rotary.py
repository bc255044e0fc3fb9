"""Denoisers whose rotations are complex in diffusers: the module that is exported has them in real numbers."""

import numpy as np
import pytest
import torch

from qcheck.model import family
from qcheck.model.family import rotary
from tests import families


def test_a_rotation_is_a_product_of_complex_numbers() -> None:
    draws = torch.Generator().manual_seed(0)
    x, angles = torch.randn(2, 5, 3, 8, generator=draws), torch.randn(2, 5, 4, generator=draws)
    turns = torch.polar(torch.ones_like(angles), angles)
    product = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns[:, :, None]
    rotated = rotary.rotate(x, rotary.rotation(turns))
    assert (rotated - torch.view_as_real(product).flatten(3)).abs().max() < 1e-6


@pytest.mark.parametrize(("height", "width"), [(16, 16), (10, 14)], ids=["whole", "padded"])
@pytest.mark.parametrize("words", [(7, 300), (32, 33)], ids=str)
def test_rows_of_z_image_are_those_of_diffusers_whatever_their_prompts_length(
    words: tuple[int, int], height: int, width: int
) -> None:
    pipe = families.FAMILIES["z-image"]()
    made = family.ZImage(pipe)
    draws = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 16, height, width, generator=draws)
    prompts = [torch.randn(count, 32, generator=draws) for count in words]
    with torch.no_grad():
        theirs = pipe.transformer(list(latents[:, :, None]), torch.tensor([0.3, 0.3]), prompts, return_dict=False)[0]
        conditions = {name: value.numpy() for name, value in made._padded(prompts).items()}
        fed = made.feed(latents.numpy(), 700.0, conditions)
        ours = made.entry(pipe.transformer)(**{name: torch.from_numpy(value) for name, value in fed.items()})
        again = pipe.transformer(list(latents[:, :, None]), torch.tensor([0.3, 0.3]), prompts, return_dict=False)[0]
    wanted = -torch.cat(theirs, dim=1).transpose(0, 1)
    assert (ours - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert all(torch.equal(one, other) for one, other in zip(theirs, again, strict=True))  # its own processor is back
    assert np.isfinite(ours.numpy()).all()
