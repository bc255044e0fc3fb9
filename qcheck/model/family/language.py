"""What families have in common whose text encoder is a language model: it reads the prompt inside a template."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from qcheck.model.components import Entry, TextEncoder
from qcheck.model.family.common import Conditions, Family
from qcheck.model.family.rotary import computing

WORDS = 512  # embeddings of a prompt: ``max_sequence_length`` of diffusers' pipelines
MASK = "encoder_hidden_states_mask"


class MaskedEntry(Entry):
    """A denoiser on prompts of one length with a mask, computed by ``compute`` and ``processor`` in real numbers."""

    processor: ClassVar[type]

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_hidden_states_mask: torch.Tensor,
    ) -> torch.Tensor:
        """The output [n, C, h, w] for latents of that shape."""
        with computing(self.denoiser, self.compute, self.processor()):
            output: torch.Tensor = self.denoiser(
                hidden_states, timestep, encoder_hidden_states, encoder_hidden_states_mask > 0.5
            )
        return output

    def compute(
        self, latents: torch.Tensor, timestep: torch.Tensor, embeddings: torch.Tensor, given: torch.Tensor
    ) -> torch.Tensor:
        """The output [n, C, h, w]; ``given`` [n, L] is true where the prompt has a token."""
        raise NotImplementedError


class LanguageFamily(Family):
    """One language model as text encoder, padded at the end to the most tokens that the pipeline takes."""

    encoders: ClassVar = {"text_encoder": WORDS}
    mask = "causal"

    @abstractmethod
    def around(self) -> tuple[str, str]:
        """What the text encoder reads before and after a prompt."""

    def asked(self, encoder: str, prompt: str) -> str:
        """The prompt in its template."""
        before, after = self.around()
        return f"{before}{prompt}{after}"

    def chat(self, **options: Any) -> tuple[str, str]:
        """What the tokenizer's template of a chat writes around a user's message, up to the answer."""
        mark = "{prompt}"
        text: str = self._tokenizer("text_encoder").apply_chat_template(
            [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True, **options
        )
        before, _, after = text.partition(mark)
        return before, after

    def cut(self, encoder: str, prompt: str) -> str:
        """As ``Family``, without the end of the template; no token of its own ends a text."""
        tokenizer, (_, after) = self._tokenizer(encoder), self.around()
        ids = tokenizer(self.asked(encoder, prompt)).input_ids
        rest: str = tokenizer.decode(ids[self.read_by()[encoder] :])
        return rest.removesuffix(after).strip() if len(rest) > len(after) else ""

    def reader(self, encoder: nn.Module) -> TextEncoder:
        """The language model without what looks at pictures and what writes words."""
        model: Any = encoder
        return super().reader(model.get_decoder())


def padded(embeddings: Sequence[torch.Tensor]) -> Conditions:
    """Embeddings [tokens, D] of each branch in one length: encoder_hidden_states [n, L, D] and their mask [n, L].

    The mask is 1 where the prompt has a token. Prompts have as many embeddings as tokens, and a deployed graph has one
    length.
    """
    words, mask = [], []
    for embedding in embeddings:
        rest = WORDS - len(embedding)
        words.append(nn.functional.pad(embedding, (0, 0, 0, rest)))
        mask.append(nn.functional.pad(embedding.new_ones(len(embedding)), (0, rest)))
    return {"encoder_hidden_states": torch.stack(words), MASK: torch.stack(mask)}
