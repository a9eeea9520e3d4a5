"""A member of the batched grid against a plain torch loop over that member alone.

Oracle: torch.nn.Linear, BatchNorm1d, torch.optim.AdamW, CrossEntropyLoss, written as one would write a single
probe; it shares only the named streams with the grid.
"""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from torch import nn

from vitreous.core.predictions import Predictions
from vitreous.core.streams import numpy_stream
from vitreous.recipes.feature_set import FeatureSet
from vitreous.recipes.grid_losses import LossSettings
from vitreous.recipes.probe_grid import ProbeMember, ProbeSettings, fit_probe_grid

C = 3


def build_head(member: ProbeMember, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    widths = [width, *member.hidden, C]
    for layer, (num_in, num_out) in enumerate(pairwise(widths)):
        linear = nn.Linear(num_in, num_out).double()
        rng = numpy_stream(member.seed, "probe", "init", layer)
        with torch.no_grad():
            if layer == len(widths) - 2:
                linear.weight.copy_(torch.from_numpy(rng.normal(0, 0.01, (num_out, num_in))))
                linear.bias.zero_()
            else:
                bound = 1 / np.sqrt(num_in)
                linear.weight.copy_(torch.from_numpy(rng.uniform(-bound, bound, (num_out, num_in))))
                linear.bias.copy_(torch.from_numpy(rng.uniform(-bound, bound, num_out)))
        layers.append(linear)
        if layer < len(widths) - 2:
            layers += [nn.BatchNorm1d(num_out).double()] if member.batch_norm else []
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def forward_with_dropout(
    head: nn.Sequential, x: torch.Tensor, member: ProbeMember, epoch: int, step: int
) -> torch.Tensor:
    def drop(values: torch.Tensor, layer: int) -> torch.Tensor:
        uniform = numpy_stream(member.seed, "probe", "dropout", epoch, step, layer).random(
            tuple(values.shape), dtype=np.float32
        )
        return values * torch.from_numpy((uniform >= member.dropout) / (1 - member.dropout))

    if not member.hidden:
        return head(drop(x, 0))
    layer = 0
    for module in head:
        x = module(x)
        if isinstance(module, nn.ReLU):
            x = drop(x, layer)
            layer += 1
    return x


def train_alone(train: FeatureSet, val: FeatureSet, member: ProbeMember, settings: ProbeSettings):
    """The best head, its epoch, and the val scores of all epochs trained."""
    w = train.weight_N / train.weight_N.sum()
    mean = (w[:, None] * train.features_ND).sum(0, dtype=np.float64)
    std = np.sqrt((w[:, None] * (train.features_ND - mean) ** 2).sum(0))
    x = torch.from_numpy((train.features_ND - mean) / std)
    x_val = torch.from_numpy((val.features_ND - mean) / std)
    y = torch.from_numpy(train.y_N)
    patients = dict(zip(train.patient_id_N.tolist(), train.y_N.tolist()))
    counts = np.bincount(list(patients.values()), minlength=C)
    if member.class_weights == "balanced":
        class_weight = counts.sum() / (C * counts)
    else:
        class_weight = np.ones(C) if member.class_weights == "none" else np.array(member.class_weights)
    row_weight = torch.from_numpy(train.weight_N * class_weight[train.y_N])

    head = build_head(member, x.shape[1])
    decayed = [module.weight for module in head if isinstance(module, nn.Linear)]
    plain = [p for p in head.parameters() if not any(p is d for d in decayed)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": member.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=member.learning_rate,
        foreach=False,
    )
    criterion = nn.CrossEntropyLoss(reduction="none", label_smoothing=settings.loss.label_smoothing)
    size = settings.batch_size or len(x)
    chunks = [list(range(a, min(a + size, len(x)))) for a in range(0, len(x), size)]
    if len(chunks) > 1 and len(chunks[-1]) == 1:
        chunks[-2:] = [chunks[-2] + chunks[-1]]
    total, warm = settings.epochs * len(chunks), settings.warmup_epochs * len(chunks)
    best_head, best_epoch, best, reference, waited, scores, t = None, 0, -1.0, -1.0, 0, [], 0
    for epoch in range(1, settings.epochs + 1):
        head.train()
        order = (
            np.arange(len(x))
            if len(chunks) == 1
            else numpy_stream(member.seed, "probe", "order", epoch).permutation(len(x))
        )
        for step, chunk in enumerate(chunks):
            rows = order[chunk]
            for group in optimizer.param_groups:
                factor = (t + 1) / warm if t < warm else (1 + np.cos(np.pi * (t - warm) / (total - warm))) / 2
                group["lr"] = member.learning_rate * factor
            logits = forward_with_dropout(head, x[rows], member, epoch, step)
            loss = (criterion(logits, y[rows]) * row_weight[rows]).sum() / row_weight[rows].sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            t += 1
        head.eval()
        with torch.no_grad():
            predictions = Predictions(
                np.arange(len(val.y_N)).astype(str),
                val.patient_id_N,
                val.y_N,
                head(x_val).numpy(),
                ("a", "b", "c"),
            ).per_patient()
        score = balanced_accuracy_score(predictions.y_true_N, predictions.y_pred_N)
        scores.append(score)
        if score > best:
            best, best_epoch, best_head = score, epoch, copy.deepcopy(head)
        if score > reference + settings.min_delta:
            reference, waited = score, 0
        else:
            waited += 1
        if settings.patience is not None and waited >= settings.patience:
            break
    return best_head, best_epoch, scores


def tensors_of(head: nn.Sequential) -> dict[str, np.ndarray]:
    found, layer = {}, -1
    for module in head:
        if isinstance(module, nn.Linear):
            layer += 1
            found |= {f"layers.{layer}.{name}": p.detach().numpy() for name, p in module.named_parameters()}
        if isinstance(module, nn.BatchNorm1d):
            state = module.state_dict()
            found |= {
                f"norms.{layer}.{name}": state[name].numpy()
                for name in ("weight", "bias", "running_mean", "running_var")
            }
    return found


MEMBERS = [
    ProbeMember(3e-3),
    ProbeMember(1e-2, weight_decay=0.3, seed=1, class_weights="balanced"),
    ProbeMember(3e-2, weight_decay=0.01, dropout=0.4, class_weights=(1.0, 3.0, 0.5)),
    ProbeMember(1e-2, weight_decay=0.1, dropout=0.4, seed=1),
    ProbeMember(1e-2, seed=2, hidden=(7,)),
    ProbeMember(3e-3, weight_decay=0.5, dropout=0.3, seed=2, hidden=(9, 5), batch_norm=True, class_weights="balanced"),
    ProbeMember(1e-2, weight_decay=0.1, dropout=0.0, seed=0, hidden=(9, 5), batch_norm=True),
]


@pytest.mark.parametrize(
    "settings",
    [
        ProbeSettings(epochs=12, batch_size=16, warmup_epochs=2, patience=3, min_delta=0.02),
        ProbeSettings(
            epochs=12, batch_size=None, warmup_epochs=0, patience=None, loss=LossSettings(label_smoothing=0.1)
        ),
    ],
    ids=["minibatches with early stopping", "full batch with label smoothing"],
)
def test_each_member_is_trained_as_plain_torch_would_alone(make_rows, settings):
    train, val = make_rows("train", 45, signal=0.6), make_rows("val", 24, signal=0.6)
    fitted = fit_probe_grid(train, val, MEMBERS, settings, num_classes=C, dtype=torch.float64)
    stopped_at = []
    for member, probe in zip(MEMBERS, fitted, strict=True):
        head, best_epoch, scores = train_alone(train, val, member, settings)
        assert probe.member == member
        assert probe.best_epoch == best_epoch
        np.testing.assert_allclose([row["val_balanced_accuracy"] for row in probe.history], scores, atol=1e-12)
        expected = tensors_of(head)
        assert set(probe.tensors) == set(expected) | {"standardiser.mean", "standardiser.std"}
        for name, values in expected.items():
            np.testing.assert_allclose(probe.tensors[name], values, rtol=0, atol=1e-8, err_msg=f"{member} {name}")
        assert probe.val_score == pytest.approx(scores[best_epoch - 1])
        stopped_at.append(len(scores))
    if settings.patience is not None:
        assert len(set(stopped_at)) > 1, "members must stop at different epochs for this test to mean anything"


def test_a_member_is_the_same_alone_and_beside_two_hundred(make_rows):
    train, val = make_rows("train", 40), make_rows("val", 20)
    settings = ProbeSettings(epochs=6, batch_size=32, warmup_epochs=1, patience=2)
    rates = np.geomspace(1e-4, 1e-1, 25)
    others = [ProbeMember(rate, dropout=p, seed=seed) for rate in rates for p in (0.0, 0.2) for seed in range(4)]
    asked = ProbeMember(2e-2, weight_decay=0.1, dropout=0.2, seed=3, class_weights="balanced")
    (alone,) = fit_probe_grid(train, val, [asked], settings, num_classes=C, dtype=torch.float64)
    beside = fit_probe_grid(
        train, val, [*others[:77], asked, *others[77:]], settings, num_classes=C, dtype=torch.float64
    )[77]
    assert beside.best_epoch == alone.best_epoch
    for name, values in alone.tensors.items():
        np.testing.assert_allclose(beside.tensors[name], values, rtol=0, atol=1e-8)


def test_weight_decay_leaves_the_bias_alone(make_rows):
    """With a decay that wipes the weights out at every step, the bias still learns the class shares."""
    train, val = make_rows("train", 40), make_rows("val", 20)
    member = ProbeMember(1e-2, weight_decay=100.0, class_weights=(1.0, 5.0, 1.0))
    settings = ProbeSettings(epochs=3, warmup_epochs=0, patience=None)
    (probe,) = fit_probe_grid(train, val, [member], settings, num_classes=C)
    assert probe.tensors["layers.0.bias"].argmax() == 1
    assert abs(probe.tensors["layers.0.weight"]).max() < 0.05
