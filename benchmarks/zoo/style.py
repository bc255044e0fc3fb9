"""Judge (b), style: a small classifier of drawing styles, trained on real pictures, looks at decoded samples.

The rule knows no metric of qcheck. The margin of a sample is the log odds of the adapter's own style against the style
of the base; the gain is the mean of f1's margins less f0's (same prompts and seeds).

- *undefined*: the classifier does not know f0 as the base's style (margins below 0 by a one-sided t-test at 5 %), does
  not tell f1 from f0 (gain above 0 by a paired one), or the samples are too few to say which of the following holds.
- *damaged*: q1 keeps less than 75 % of the gain, (q1 - f0) / (f1 - f0) in means, and less than all of it at 1 %.
- *intact*: q1 keeps 75 % or more, and more than half of it at 1 %.

Tests are paired t-tests over probes on q1 - f1 and on q1 - f0 - (f1 - f0) / 2. The rule was written before any case was
run, and changed three times. First for what f0 and f1 of six adapters looked like: the odds were against all other
styles and the level 1 %, and it told hardly any adapter from the base. Then because 16 samples leave a standard error
of .2 on what is kept of a weak style: it had asked for a gain of 1 nat instead of the tests, and called chance damage
and damage undefined (seen on six adapters under the rough schemes). Then f0 had to be known, by what f0 alone looked
like: of ``flow`` at guidance 7.5 the classifier gave 94 % of the base's own samples to one adapter's style and 77 % to
the other's, of ``velocity`` at 3 52 %, and a share of what it saw beyond that was no share of a style.

It never sees a latent, an output of the denoiser or a weight, and knows nothing of what is drawn: an adapter whose
style stays while its subjects fall apart is intact to it.

``python -m benchmarks.zoo.style --pictures DIR PIPELINE`` trains one into the folder of that pipeline's adapters.
"""

import argparse
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import nn
from torch.nn import functional as F

from benchmarks.zoo.pipelines import PIPELINES, Pipeline
from tools.train_demo.denoiser import encode
from tools.train_demo.pictures import Pictures

Fate = Literal["damaged", "intact", "undefined"]
TOLD, SURE, KEPT, LEAST = 0.05, 0.01, 0.75, 0.5


class Classifier(nn.Module):
    """Pictures [n, 3, 64, 64] in [-1, 1] to logits [n, styles], from means and maxima over places."""

    def __init__(self, styles: int) -> None:
        super().__init__()
        widths = (3, 32, 64, 128)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 5 if a == 3 else 3, 2, 1), nn.GroupNorm(8, b), nn.SiLU())
                for a, b in itertools.pairwise(widths)
            )
        )
        self.head = nn.Linear(2 * widths[-1], styles)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """As the class says."""
        places = self.layers(pictures)
        found: torch.Tensor = self.head(torch.cat([places.mean((2, 3)), places.amax((2, 3))], 1))
        return found


@torch.no_grad()
def passed(vae: AutoencoderTiny, pictures: Pictures) -> torch.Tensor:
    """The pictures as the pipeline's autoencoder gives them back, [n, 3, 64, 64] in [-1, 1]."""
    scale = float(vae.config.scaling_factor)
    parts = encode(vae, pictures).split(32)
    return torch.cat([vae.decode(part / scale, return_dict=False)[0].clamp(-1, 1) for part in parts])


def train(pipeline: Pipeline, folder: Path, steps: int = 2000, batch: int = 64) -> dict[str, object]:
    """Train on pictures as drawn and as the autoencoder gives them back; the record holds accuracies on unseen ones.

    Every sixth subject is held out in all styles.
    """
    torch.manual_seed(0)
    vae, styles = pipeline.vae(), pipeline.styles
    learned: list[torch.Tensor] = []
    tests: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for style in styles:
        pictures, kept = pipeline.style_pictures(folder, style)
        again = passed(vae, pictures)
        learned.append(torch.stack([pictures.images[~kept], again[~kept]], 1).half())
        tests[style] = pictures.images[kept], again[kept]
    model = Classifier(len(styles))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=5e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        labels = torch.randint(len(styles), (batch,))
        rows = torch.stack([_drawn_one(learned[label]) for label in labels])
        loss = F.cross_entropy(model(rows), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    out = pipeline.folder
    out.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), out / "style.safetensors")
    record = {
        "steps": steps,
        "pictures": {style: len(part) for style, part in zip(styles, learned, strict=True)},
        "held_out": {style: len(tests[style][0]) for style in styles},
        "accuracy_as_drawn": {name: _accuracy(model, tests[name][0], i) for i, name in enumerate(styles)},
        "accuracy_through_autoencoder": {name: _accuracy(model, tests[name][1], i) for i, name in enumerate(styles)},
    }
    (out / "style.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def _drawn_one(pictures: torch.Tensor) -> torch.Tensor:
    """One picture of [n, 2, 3, 64, 64], shifted by up to four pixels, perhaps mirrored, under a little noise."""
    picture = pictures[int(torch.randint(len(pictures), ())), int(torch.randint(2, ()))].float()
    down, right = (int(x) for x in torch.randint(-4, 5, (2,)))
    picture = torch.roll(picture, (down, right), (1, 2))
    picture = picture.flip(2) if torch.rand(()) < 0.5 else picture
    return picture + 0.05 * torch.rand(()) * torch.randn(picture.shape)


@torch.no_grad()
def _accuracy(model: Classifier, pictures: torch.Tensor, style: int) -> float:
    return round(float((model(pictures).argmax(1) == style).float().mean()), 4)


def stored(pipeline: Pipeline) -> Classifier:
    """The classifier that was trained for a pipeline."""
    model = Classifier(len(pipeline.styles))
    model.load_state_dict(load_file(pipeline.folder / "style.safetensors"))
    return model.eval()


@torch.no_grad()
def seen(model: Classifier, pictures: torch.Tensor) -> np.ndarray:
    """Logits [n, styles] of decoded pictures [n, 3, 64, 64] in [0, 1]; NaN where a picture is not finite."""
    found: np.ndarray = model(pictures.float() * 2 - 1).double().numpy()
    return found


def margins(logits: np.ndarray, style: int) -> np.ndarray:
    """Log odds [n] in nat of style number ``style`` against the base's, which is the first, of logits [n, styles]."""
    found: np.ndarray = logits[:, style] - logits[:, 0]
    return found


@dataclass(frozen=True)
class Judgement:
    """The gain in nat, the share that q1 keeps with its standard error over probes, and p-values.

    ``base`` is that of f0 not being of the base's style, ``told`` that of no gain, ``less`` that of all of it being
    kept, ``more`` that of no more than half.
    """

    gain: float
    kept: float
    error: float
    base: float
    told: float
    less: float
    more: float

    @property
    def fate(self) -> Fate:
        """By the rule above."""
        if self.base > TOLD or self.gain <= 0 or self.told > TOLD:
            return "undefined"
        if self.kept < KEPT:
            return "damaged" if self.less <= SURE else "undefined"
        return "intact" if self.more <= SURE else "undefined"


def judge(f0: np.ndarray, f1: np.ndarray, q1: np.ndarray) -> Judgement:
    """The rule on margins [n] of matched samples; samples that are not finite have lost their style."""
    gains, left = f1 - f0, np.where(np.isfinite(q1), q1, f0) - f0
    gain = float(gains.mean())
    kept = float(left.mean()) / gain
    residual = (left - kept * gains) / gain
    error = float(residual.std(ddof=1)) / float(np.sqrt(len(gains)))
    told, less, more = _above(gains), _above(gains - left), _above(left - LEAST * gains)
    return Judgement(gain, kept, error, _above(-f0), told, less, more)


def _above(values: np.ndarray) -> float:
    """One-sided p-value of a mean of 0 or less; values that do not vary speak for themselves."""
    if np.ptp(values) == 0:
        return float(values[0] <= 0)
    return float(stats.ttest_1samp(values, 0.0, alternative="greater").pvalue)


def main() -> None:
    """Train it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("pipeline", choices=tuple(PIPELINES))
    parser.add_argument("--pictures", type=Path, default=Path("build/pictures"))
    parser.add_argument("--steps", type=int, default=2000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(train(PIPELINES[asked.pipeline], asked.pictures, asked.steps), indent=1))


if __name__ == "__main__":
    main()
