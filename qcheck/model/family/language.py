"""What families have in common whose text encoder is a language model: it reads the prompt inside a template.

Prompts have as many embeddings as tokens, and a deployed graph has one length. They are padded to the most that the
pipeline takes, with a mask.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from qcheck.model.components import Encoder, LanguageModel
from qcheck.model.family.common import Conditions, Family

WORDS = 512  # embeddings of a prompt: ``max_sequence_length`` of diffusers' pipelines
MASK = "encoder_hidden_states_mask"


class LanguageFamily(Family):
    """One language model as text encoder, of whose hidden states those after ``layer`` are the embeddings.

    Conditions are encoder_hidden_states [1 or 2, L, D] and encoder_hidden_states_mask [1 or 2, L], 1 where the prompt
    has a token.
    """

    encoders: ClassVar = {"text_encoder": WORDS}
    layer: ClassVar[int]

    @abstractmethod
    def around(self) -> tuple[str, str]:
        """What the text encoder reads before and after a prompt."""

    def tokens(self, encoder: str, prompts: Sequence[str]) -> torch.Tensor:
        """The tokens [n, L] of prompts in their template, padded at the end: no token reads what comes after it."""
        tokenizer, (before, after), length = self._tokenizer(encoder), self.around(), self.read_by()[encoder]
        options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        texts = [f"{before}{prompt}{after}" for prompt in prompts]
        ids: torch.Tensor = tokenizer(texts, padding_side="right", **options).input_ids
        return ids

    def cut(self, encoder: str, prompt: str) -> str:
        """As ``Family``, without the end of the template."""
        tokenizer, (before, after) = self._tokenizer(encoder), self.around()
        ids = tokenizer(f"{before}{prompt}{after}").input_ids
        rest: str = tokenizer.decode(ids[self.read_by()[encoder] :])
        return rest.removesuffix(after).strip() if len(rest) > len(after) else ""

    def reader(self, encoder: nn.Module) -> Encoder:
        """The language model up to its layer of embeddings."""
        return LanguageModel(encoder, self.layer)

    def _padded(self, embeddings: Sequence[torch.Tensor]) -> Conditions:
        """The conditions that the class lists, of embeddings [tokens, D] of each branch."""
        words, mask = [], []
        for embedding in embeddings:
            rest = WORDS - len(embedding)
            words.append(nn.functional.pad(embedding, (0, 0, 0, rest)))
            mask.append(nn.functional.pad(embedding.new_ones(len(embedding)), (0, rest)))
        return {"encoder_hidden_states": torch.stack(words), MASK: torch.stack(mask)}
