"""Selection in the loop of transformers' Trainer, run as a user would."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from bsgal_score import FixedThreshold, GhostScorer, GradientCache
from bsgal_score.ready.transformers import SelectsSamples


class SelectingTrainer(SelectsSamples, Trainer):
    pass


def make_model():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        num_labels=2,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def make_samples(n, with_real=True):
    """The label is whether the first word is below 10; every second generated one has the other."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for i in range(n):
        words = torch.randint(20, (6,), generator=generator)
        label = int(words[0] < 10)
        is_real = i % 2 == 0
        wrong = not is_real and i % 4 == 1
        sample = {"input_ids": words, "labels": label ^ wrong, "is_real": is_real}
        samples.append(sample if with_real else {k: v for k, v in sample.items() if k != "is_real"})
    return samples


def train(tmp_path, policy, samples, trainer_class=SelectingTrainer, **options):
    model = make_model()
    head = model.classifier
    scorer = GhostScorer(head, GradientCache(head.named_parameters(), decay=0.9))
    arguments = TrainingArguments(
        str(tmp_path), max_steps=4, per_device_train_batch_size=8, learning_rate=1e-2,
        report_to=[], save_strategy="no", use_cpu=True, remove_unused_columns=False,
        disable_tqdm=True, **options,
    )  # fmt: skip
    trainer = trainer_class(model, arguments, train_dataset=samples, eval_dataset=samples)
    if policy is not None:
        trainer.select_samples(scorer, policy)
    trainer.train()
    return trainer, scorer


def weights(trainer):
    return {name: one.clone() for name, one in trainer.model.state_dict().items()}


def test_what_is_rejected_is_as_good_as_absent(tmp_path):
    # All generated samples are rejected: their terms are gone, the normalisation is not.
    trainer, scorer = train(tmp_path, FixedThreshold(2.0), make_samples(64))

    class Masked(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            is_real = inputs.pop("is_real")
            labels = inputs.pop("labels")
            losses = torch.nn.functional.cross_entropy(
                model(**inputs).logits, labels, reduction="none"
            )
            return (losses * is_real).mean()

    expected, _ = train(tmp_path, None, make_samples(64), Masked)
    assert trainer.decisions
    assert all(not one.trains for one in trainer.decisions)
    assert scorer.cache.n_updates == 4
    for name, one in weights(expected).items():
        torch.testing.assert_close(weights(trainer)[name], one, rtol=1e-4, atol=1e-6, msg=name)


def test_what_is_accepted_trains_as_without_selection(tmp_path):
    trainer, _ = train(tmp_path, FixedThreshold(-2.0), make_samples(64))
    samples = [{k: v for k, v in s.items() if k != "is_real"} for s in make_samples(64)]
    plain, _ = train(tmp_path, None, samples, Trainer)
    for name, one in weights(plain).items():
        torch.testing.assert_close(weights(trainer)[name], one, rtol=1e-4, atol=1e-6, msg=name)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-4)


def test_gradients_may_be_accumulated(tmp_path):
    trainer, scorer = train(
        tmp_path, FixedThreshold(0.0), make_samples(64), gradient_accumulation_steps=2
    )
    assert scorer.cache.n_updates == 8
    assert trainer.decisions


def test_a_batch_that_does_not_say_what_is_real_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no entry 'is_real'.*remove_unused_columns=False"):
        train(tmp_path, FixedThreshold(0.0), make_samples(64, with_real=False))
