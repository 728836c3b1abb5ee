from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from dpldm.models.families import reading
from dpldm.models.families.reading import Reader, read

TOKENS = torch.tensor([[2, 5, 3, 0, 0], [2, 6, 7, 3, 0], [2, 5, 3, 0, 0]])


@pytest.fixture
def encoder() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return (
        BertModel(BertConfig(vocab_size=9, pad_token_id=0, use_attention_mask=True, **sizes))
        .eval()
        .requires_grad_(False)
    )


class Counting:
    """An encoder that counts the texts it reads."""

    def __init__(self, encoder: Any) -> None:
        self.encoder, self.config, self.texts = encoder, encoder.config, 0

    def parameters(self) -> Any:
        return self.encoder.parameters()

    def __call__(self, tokens: torch.Tensor, **more: Any) -> Any:
        self.texts += len(tokens)
        return self.encoder(tokens, **more)


def test_what_fills_a_text_up_changes_nothing(encoder: Any) -> None:
    longer = torch.cat([TOKENS, torch.zeros(3, 2, dtype=torch.int64)], 1)
    assert torch.allclose(read(encoder, TOKENS)[:, :3], read(encoder, longer)[:, :3], atol=1e-6)
    encoder.config.use_attention_mask = False
    assert not torch.allclose(read(encoder, TOKENS)[:, :3], read(encoder, longer)[:, :3], atol=1e-3)


def test_a_frozen_encoder_reads_each_text_once(encoder: Any) -> None:
    counting, reader = Counting(encoder), Reader()
    for tokens in (TOKENS, TOKENS.flip(0), TOKENS[:1]):
        assert torch.allclose(reader(counting, tokens), read(encoder, tokens), atol=1e-6)
    assert counting.texts == 2


def test_a_changed_weight_is_noticed(encoder: Any) -> None:
    counting, reader = Counting(encoder), Reader()
    before = reader(counting, TOKENS)
    with torch.no_grad():
        encoder.encoder.layer[0].attention.self.value.weight.mul_(3)
    assert not torch.allclose(reader(counting, TOKENS), before, atol=1e-3)
    encoder.bfloat16()
    assert reader(counting, TOKENS).dtype == torch.bfloat16
    assert counting.texts == 6


def test_a_tuned_encoder_has_gradients_and_no_memory(encoder: Any) -> None:
    encoder.encoder.layer[0].attention.self.value.weight.requires_grad_(True)
    counting, reader = Counting(encoder), Reader()
    for _ in range(2):
        reader(counting, TOKENS).sum().backward()
    assert counting.texts == 6
    assert encoder.encoder.layer[0].attention.self.value.weight.grad.abs().sum() > 0


def test_memory_has_an_end(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_BYTES", 1)
    counting, reader = Counting(encoder), Reader()
    for _ in range(2):
        reader(counting, TOKENS[:1])
    assert counting.texts == 2
