"""A multilayer perceptron over the columns of a table, as a torch module.

Standardisation lives in the weights file, beside the weights that were trained with it. It is imported
only where torch is at hand: by the `torch` flavor and by training code.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch  # noqa: TID253 -- a module class needs it; only imported inside functions elsewhere
from torch import nn  # noqa: TID253

from batch_platform.core.models.tabular import MISSING, Standardisation, TabularConfig

WEIGHTS_FILE = "model.safetensors"


class TabularMLP(nn.Module):
    """Numbers standardised, with a null indicator each; categories embedded; then hidden layers."""

    mean: torch.Tensor
    std: torch.Tensor
    target_mean: torch.Tensor
    target_std: torch.Tensor

    def __init__(self, config: TabularConfig) -> None:
        super().__init__()
        self.config = config
        width = len(config.numeric)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.register_buffer("target_mean", torch.zeros(1))
        self.register_buffer("target_std", torch.ones(1))
        self.embeddings = nn.ModuleList(
            nn.Embedding(len(words) + MISSING + 1, config.embedding_size)
            for words in config.categorical.values()
        )
        sizes = [2 * width + config.embedding_size * len(self.embeddings), *config.hidden]
        layers: list[nn.Module] = []
        for size, following in pairwise(sizes):
            layers += [nn.Linear(size, following), nn.ReLU(), nn.Dropout(config.dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], config.outputs))

    def set_standardisation(self, standardisation: Standardisation) -> None:
        """Take the training rows' mean and standard deviation."""
        self.mean.copy_(torch.from_numpy(standardisation.mean))
        self.std.copy_(torch.from_numpy(standardisation.std))

    def set_target_scale(self, mean: float, std: float) -> None:
        """Regression: outputs are `mean + std * network`, so that the network learns unit values."""
        self.target_mean.fill_(mean)
        self.target_std.fill_(std)

    def forward(self, numeric: torch.Tensor, categories: torch.Tensor) -> torch.Tensor:
        """Compute logits (rows, labels) or predictions (rows, 1), float32.

        Args:
            numeric: (rows, numeric columns) float32, NaN where missing.
            categories: (rows, categorical columns) int64.
        """
        missing = torch.isnan(numeric)
        scaled = torch.where(missing, 0.0, (numeric - self.mean) / self.std)
        vectors = [embed(categories[:, place]) for place, embed in enumerate(self.embeddings)]
        hidden = torch.cat([scaled, missing.to(scaled.dtype), *vectors], dim=1)
        outputs = self.layers(hidden)
        if self.config.task == "regression":
            outputs = outputs * self.target_std + self.target_mean
        return outputs

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` and `config.json` into a folder, created when absent."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(tensors, folder / WEIGHTS_FILE)
        self.config.write(folder)

    @classmethod
    def load(cls, folder: Path) -> "TabularMLP":
        """Read what `save` wrote, on the CPU, in evaluation mode.

        Raises:
            ModelError: the config is wrong.
            RuntimeError: the tensors are not those of the config.
        """
        from safetensors.torch import load_file

        # Built without memory: a config that asks for huge layers fails against the tensors, not the machine.
        with torch.device("meta"):
            model = cls(TabularConfig.read(folder))
        model.load_state_dict(load_file(folder / WEIGHTS_FILE), strict=True, assign=True)
        return model.eval()


def tensors(numeric: np.ndarray, categories: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """The arrays of `tabular.encode` as tensors that share their memory."""
    return torch.from_numpy(numeric), torch.from_numpy(categories)
