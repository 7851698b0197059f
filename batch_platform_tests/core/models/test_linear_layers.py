"""Linear layers through oneDNN give what torch's own give, in shapes that text models use."""

import pytest
import torch

from batch_platform.core.models import linear_layers


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(24, 48)
        self.rest = torch.nn.ModuleList([torch.nn.Linear(48, 7, bias=False)])

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.rest[0](torch.tanh(self.first(rows)))


@pytest.mark.parametrize("shape", [(1, 24), (1000, 24), (3, 5, 24), (0, 24)])
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")
def test_equal_outputs(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    monkeypatch.setattr(linear_layers, "_onednn_is_faster", lambda: True)
    torch.manual_seed(0)
    network = Network().eval()
    rows = torch.randn(shape)
    with torch.inference_mode():
        expected = network(rows)
        assert linear_layers.use_fastest(network) == "onednn"
        assert not any(type(module) is torch.nn.Linear for module in network.modules())
        assert torch.allclose(network(rows), expected, atol=1e-6)


def test_torch_s_own_way_is_kept_where_it_is_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_layers, "_seconds", lambda call: 1.0)
    linear_layers._onednn_is_faster.cache_clear()
    network = Network()
    assert linear_layers.use_fastest(network) == "torch"
    assert type(network.first) is torch.nn.Linear
    linear_layers._onednn_is_faster.cache_clear()
