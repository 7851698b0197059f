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
    monkeypatch.setattr(linear_layers, "onednn_is_faster", lambda: True)
    torch.manual_seed(0)
    network = Network().eval()
    rows = torch.randn(shape)
    with torch.inference_mode():
        expected = network(rows)
        assert linear_layers.use_fastest(network) == "onednn"
        assert not any(type(module) is torch.nn.Linear for module in network.modules())
        assert torch.allclose(network(rows), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("capability", "maker", "backend"),
    [
        ("AVX512", "AuthenticAMD", "onednn"),
        ("AVX512", "GenuineIntel", "torch"),
        ("AVX2", "AuthenticAMD", "torch"),
        ("DEFAULT", "", "torch"),
    ],
)
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")
def test_the_kind_of_processor_decides(
    monkeypatch: pytest.MonkeyPatch, capability: str, maker: str, backend: str
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(linear_layers, "_maker", lambda: maker)
    monkeypatch.setattr(linear_layers, "onednn_is_faster", linear_layers.onednn_is_faster.__wrapped__)
    network = Network()
    assert linear_layers.use_fastest(network) == backend
    assert (type(network.first) is torch.nn.Linear) == (backend == "torch")


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")
def test_layers_of_bert(monkeypatch: pytest.MonkeyPatch, activation: str, attention: str) -> None:
    from transformers import BertConfig, BertModel

    monkeypatch.setattr(linear_layers, "onednn_is_faster", lambda: True)
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
    config = BertConfig(
        vocab_size=50, hidden_act=activation, attn_implementation=attention, initializer_range=0.3, **sizes
    )
    network = BertModel(config).eval()
    ids = torch.randint(0, 50, (3, 9))
    mask = torch.ones_like(ids)
    whole = mask.clone()
    mask[0, 4:] = 0  # padding
    with torch.inference_mode():
        expected = [network(input_ids=ids, attention_mask=each).last_hidden_state for each in (mask, whole)]
        linear_layers.use_fastest(network)
        found = [network(input_ids=ids, attention_mask=each).last_hidden_state for each in (mask, whole)]
    fused = type(network.encoder.layer[0]).__name__ == "FusedBertLayer"
    assert fused == (activation == "gelu" and attention == "sdpa")
    assert torch.allclose(found[0][mask.bool()], expected[0][mask.bool()], atol=1e-5)
    assert torch.allclose(found[1], expected[1], atol=1e-5)
