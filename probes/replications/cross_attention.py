"""A claim on speech: how much of an explanation cross-attention is."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from interp import catalog
from interp.heads import HeadSet
from interp.probes.crossattn import Options, compare
from interp.probes.experiment import Progress
from interp.probes.replications.claim import Claim, Evidence

if TYPE_CHECKING:
    from interp.models import Model


@dataclass(frozen=True)
class CrossAttentionIsHalf(Claim):
    """Papi et al. 2025: cross-attention covers about half of what matters."""

    recordings: tuple[str, ...] = ("beckett", "two-cities")
    """Catalog names."""
    masks: int = 200
    """Random masks of each window of sound; of the encoder's outputs twice as many."""

    name = "cross_attention_is_half"
    statement = (
        "Cross-attention covers about half of the saliency of the input, and little "
        "more of that of the encoder's outputs."
    )
    published = (
        "Pearson correlation of the best aggregate of attention with "
        "perturbation saliency 0.49 to 0.63; with that of encoder outputs 0.52 to "
        "0.75, 0.03 to 0.18 more. Conformers of 125M parameters and more, English"
    )
    source = "Papi et al. 2025 (arXiv:2509.18010)"
    method = (
        "54 s of speech that the model itself writes down, in three windows; saliency "
        "by masking superpixels. Far fewer masks than the paper's 20,000, of larger "
        "superpixels: correlations are freed of the masks' noise, which two halves of "
        "them show. Mean of the heads of the last layer, since the paper takes the "
        "best of all aggregates and finds it in late layers. Intervals are over output "
        "tokens."
    )

    def measure(
        self,
        model: "Model",
        *,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> list[Evidence]:
        """Correlations with either saliency, and their difference."""
        layers = model.anatomy.at("cross")
        last = [(len(layers) - 1, head) for head in range(layers[-1].n_heads)]
        found = compare(
            model,
            [file for name in self.recordings for file in _files(name)],
            methods=["perturbation"],
            heads=HeadSet.of(last, model.anatomy, "cross"),
            options=Options(masks=self.masks, cheap_masks=2 * self.masks),
            faithfulness=False,
            out=None if folder is None else folder / self.name,
            progress=progress or (lambda step, done, total: None),
        )
        node = found["agreement"].to_dataset()
        n = f"{found.attrs['n_tokens']} tokens"
        return [
            Evidence(
                what,
                "correlation",
                float(value),
                float(bounds.sel(bound="low")),
                float(bounds.sel(bound="high")),
                n,
                least=least,
                most=most,
            )
            for what, value, bounds, least, most in (
                (
                    "attention and saliency of the input",
                    node["without_noise"].sel(space="input"),
                    node["without_noise_interval"].sel(space="input"),
                    0.49,
                    0.63,
                ),
                (
                    "attention and saliency of encoder outputs",
                    node["without_noise"].sel(space="states"),
                    node["without_noise_interval"].sel(space="states"),
                    0.52,
                    0.75,
                ),
                (
                    "the second less the first: context mixing in the encoder",
                    node["mixing_without_noise"],
                    node["mixing_without_noise_interval"],
                    0.03,
                    0.18,
                ),
            )
        ]


def _files(recording: str) -> list[Path]:
    return sorted(catalog.fetch(recording).glob("*.wav"))
