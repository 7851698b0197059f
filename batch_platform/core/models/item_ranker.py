"""Which items come next for a row, by the items that it had: a linear model over bags of items, as a torch module.

An item's score is its share of all rows (how popular it is), for each column a weight for the item itself, as often as it
is there (who had it has it again), and through factors weights for all others (who had this has that): an estimate of
the probability that it comes next. It is imported only where torch is at hand; what the file of the model may say is in
`item_ranker_config`.
"""

from pathlib import Path

import numpy as np
import torch  # noqa: TID253 -- a module class needs it; only imported inside functions elsewhere
from torch import nn  # noqa: TID253

from batch_platform.core.models.item_ranker_config import Bags, ItemRankerConfig

WEIGHTS_FILE = "model.safetensors"
# Rows that are held against all items at one time.
_ROWS = 256


class ItemRanker(nn.Module):
    """Scores every item of a catalogue for a row."""

    def __init__(self, config: ItemRankerConfig) -> None:
        super().__init__()
        self.config = config
        columns, items = len(config.columns), len(config.items)
        self.popularity = nn.Parameter(torch.zeros(items))
        self.again = nn.Parameter(torch.zeros(columns, items))
        self.read = nn.ParameterList(nn.Parameter(torch.zeros(items, config.factors)) for _ in range(columns))
        self.suggest = nn.Parameter(torch.zeros(config.factors, items))

    def forward(self, bags: list[torch.Tensor]) -> torch.Tensor:
        """Scores of the items, (rows, items) float32: probabilities, except that a sum may lie outside 0 and 1.

        Args:
            bags: for each column how often each item is there, (rows, items) float32, sparse.
        """
        scores = self.popularity
        for place, bag in enumerate(bags):
            scores = scores + bag.to_dense() * self.again[place] + (bag @ self.read[place]) @ self.suggest
        return scores

    def ranked(self, bags: Bags) -> np.ndarray:
        """The best items of each row: (rows, 2 * top_k) float32, their places in the catalogue, then their probabilities."""
        found = [np.empty((0, 2 * self.config.top_k), np.float32)]
        for start in range(0, bags.rows, _ROWS):
            part = bags.between(start, min(start + _ROWS, bags.rows))
            scores = self(sparse(part, len(self.config.items), self.popularity.device))
            best, places = scores.topk(self.config.top_k, dim=1)  # (rows, top_k), the best first
            found.append(torch.cat([places.to(best.dtype), best.clamp(0, 1)], dim=1).cpu().numpy())
        return np.concatenate(found)

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` and `config.json` into a folder, created when absent."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(tensors, folder / WEIGHTS_FILE)
        self.config.write(folder)

    @classmethod
    def load(cls, folder: Path) -> "ItemRanker":
        """Read what `save` wrote, on the CPU, in evaluation mode.

        Raises:
            ModelError: the config is wrong.
            RuntimeError: the tensors are not those of the config.
        """
        from safetensors.torch import load_file

        # Built without memory: a config that asks for huge layers fails against the tensors, not the machine.
        with torch.device("meta"):
            model = cls(ItemRankerConfig.read(folder))
        model.load_state_dict(load_file(folder / WEIGHTS_FILE), strict=True, assign=True)
        return model.eval()


def sparse(bags: Bags, items: int, device: torch.device | str = "cpu") -> list[torch.Tensor]:
    """The bags as sparse matrices, (rows, items) float32 each."""
    return [
        torch.sparse_coo_tensor(
            torch.from_numpy(np.stack([column.rows, column.items])),
            torch.from_numpy(column.weights),
            (bags.rows, items),
            check_invariants=False,
            is_coalesced=True,
        ).to(device)
        for column in bags.columns
    ]
